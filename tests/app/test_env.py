"""What a bug report needs is there, and nothing private is."""

from __future__ import annotations

import json

from posttrain.app.cli import main
from posttrain.app.env import cpu_features


def test_env_as_json(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert main(["env", "--json"]) == 0
    text = capsys.readouterr().out
    found = json.loads(text)
    assert {"program", "packages", "processor", "memory and disk", "torch", "variables"} == set(found)
    assert found["packages"]["torch"] and found["torch"]["threads"] and found["variables"]["OMP_NUM_THREADS"] == "1"
    assert "secret" not in text


def test_env_as_text(capsys):
    assert main(["env"]) == 0
    text = capsys.readouterr().out
    assert "posttrain" in text and "memory free" in text


def test_cpu_features_are_those_that_matter():
    assert set(cpu_features()) <= {"avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "bf16",
                                   "i8mm", "sve"}
