"""The demo: in small with a stand-in base model here, whole in the slow tests."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from posttrain.app import demo
from posttrain.app.cli import main
from posttrain.app.launch import Interrupted
from posttrain.builtin import builtin_model_path, held_out_path
from posttrain.core.config import read_config
from posttrain.eval.doctor import examine

NUMBERS = {"exact_match", "completes", "answer_loss", "perplexity", "stops"}


@pytest.fixture
def stand_in(tiny_model, tmp_path, monkeypatch):
    """The tiny model in the place of the embedded one, 3 updates, 6 questions; runs go to a fresh folder."""
    settings, questions = tmp_path / "demo.yaml", tmp_path / "held_out.jsonl"
    settings.write_text('data: ["builtin[#40]", "builtin:prose@0.2"]\nmethod: full\nmax_steps: 3\nbatch_size: 8\n'
                        "learning_rate: 1e-3\n", "utf-8")
    questions.write_text("\n".join(held_out_path().read_text("utf-8").splitlines()[:6]) + "\n", "utf-8")
    monkeypatch.setattr("posttrain.model.resolve.builtin_model_path", lambda: tiny_model)
    monkeypatch.setattr(demo, "demo_settings_path", lambda: settings)
    monkeypatch.setattr(demo, "held_out_path", lambda: questions)
    monkeypatch.setattr(demo, "ROOM", 8)
    monkeypatch.chdir(tmp_path)
    return questions


def test_json_holds_the_numbers_and_nothing_else(stand_in, capsys):
    assert main(["demo", "--json"]) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert set(found) == {"seconds", "run", "held_out", "before", "after"} and found["held_out"] == str(stand_in)
    assert found["run"] == "runs/demo-1"
    assert set(found["before"]) == set(found["after"]) == NUMBERS
    assert "update 3/3" in said.err


def test_every_part_is_shown_in_order(stand_in, capsys):
    assert main(["demo", "--output_dir", "here", "--seed", "7"]) == 0
    out = capsys.readouterr().out
    parts = ["Give me a 1-sentence introduction of LLM.", "prompt", "⟦", "before", "update 1/3", "update 3/3",
             "Give me a 1-sentence introduction of LLM.", "answers exactly", "here/model", "posttrain chat here"]
    at = 0
    for part in parts:
        assert part in out[at:], part
        at = out.index(part, at) + len(part)
    assert read_config("here/config.yaml")["seed"] == 7


def test_a_folder_in_use_is_refused_before_anything_is_computed(stand_in, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("mine")
    monkeypatch.setattr("posttrain.app.assistant.load", lambda *_: pytest.fail("the base was loaded"))
    assert main(["demo", "--output_dir", "here"]) == 2
    assert "the output folder is in use" in capsys.readouterr().err


def test_ctrl_c_in_its_training_ends_it_like_any_run(stand_in, monkeypatch):
    def stopped(*given, **how):
        raise Interrupted(None, 130)

    monkeypatch.setattr("posttrain.app.launch.launch", stopped)
    assert main(["demo"]) == 130


def test_the_settings_are_those_of_the_file(stand_in):
    from posttrain.app.arguments import parse

    settings = demo.demo_settings(parse(["demo", "--threads", "1", "--output_dir", "x"]))
    assert (settings.max_steps, settings.threads, settings.output_dir, settings.seed) == (3, 1, "x", 42)


def test_another_verb_s_keys_are_refused(capsys):
    assert main(["demo", "--learning_rate", "1"]) == 2
    assert "`--learning_rate` changes nothing in `posttrain demo`" in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_keeps_its_promise(tmp_path):
    """The base knows the held-out facts as prose and cannot answer; after SFT it answers and stops."""
    if not (builtin_model_path() / "model.safetensors").is_file():
        pytest.skip("the embedded model is not in this checkout")
    done = subprocess.run([sys.executable, "-m", "posttrain", "demo", "--json"], cwd=tmp_path, capture_output=True,
                          text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    before, after = found["before"], found["after"]
    assert before["completes"] >= 0.9 and before["exact_match"] <= 0.05
    assert after["exact_match"] >= 0.9 and after["stops"] >= 0.99
    assert after["answer_loss"] < before["answer_loss"]
    assert examine(tmp_path / found["run"]) == []  # and the doctor finds nothing in it
