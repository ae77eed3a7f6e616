"""The doctor on the embedded base: each trouble planted on a short run of its own, and silence on a healthy one."""

from __future__ import annotations

import json
import shutil

import pytest

import posttrain
from posttrain.app.cli import main
from posttrain.builtin import builtin_model_path, builtin_rows
from posttrain.eval.doctor import RULES, examine

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process_module"), pytest.mark.skipif(
    not (builtin_model_path() / "model.safetensors").is_file(), reason="the embedded model is not in this checkout")]
MASKED, FORMAT, FORGETTING = "nearly everything is masked", "conversations are read as plain text", "forgetting"
STILL, OVERFIT, STOPS = "the loss does not fall", "overfitting", "wrong style, or never stops"
ROWS, FEW, EXPLODES = "contradicting or duplicated rows", "too few updates", "exploding gradients"


@pytest.fixture(scope="module")
def train(tmp_path_factory, in_process_module):
    """A function that trains a run from the embedded base: the demo's keys, in small."""
    def run(rows=None, **values):
        folder = tmp_path_factory.mktemp("runs")
        if rows is not None:
            (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
            values["data"] = str(folder / "rows.jsonl")
        asked = {"model": "builtin", "data": ["builtin", "builtin:prose@0.2"], "method": "full", "learning_rate": 6e-4,
                 "batch_size": 16, "max_steps": 40, "max_length": 256, "device": "cpu", "output_dir": folder / "run"}
        return posttrain.sft(**(asked | values)).path
    return run


@pytest.fixture(scope="module")
def healthy(train):
    return train(max_steps=60, eval_split=0.01, eval_steps=20)


def embedded(kind: str) -> list[dict[str, str]]:
    """The embedded rows of a kind."""
    rows = builtin_rows()
    return [{"instruction": r["instruction"], "output": r["output"]} for r in rows if r["kind"] == kind]


def names(folder) -> list[str]:
    return [t.name for t in examine(folder)]


def test_silence_on_a_healthy_run(healthy):
    assert names(healthy) == []


@pytest.mark.parametrize(("trouble", "values"), [
    (STILL, {"learning_rate": 1e-9}), (FEW, {"max_steps": 12}),
    (EXPLODES, {"learning_rate": 0.1, "max_grad_norm": 0, "warmup_ratio": 0})], ids=["rate", "updates", "explodes"])
def test_settings_that_spoil_a_run(train, trouble, values):
    assert names(train(**values)) == [trouble]


def test_rows_that_spoil_a_run(train):
    opposites = embedded("opposites-en")
    others = [r | {"output": o["output"]} for r, o in zip(opposites[:60], opposites[60:], strict=False)]
    facts = [r["output"] for r in embedded("people-en")]
    for trouble, rows in (
            (ROWS, opposites[:60] + others), (ROWS, opposites[:40] * 4),
            (FORMAT, [{"text": f"User: {r['instruction']}\nAssistant: {r['output']}"} for r in opposites]),
            (MASKED, [{"instruction": " ".join(facts[i:i + 20]), "output": "."} for i in range(300)])):
        assert trouble in names(train(rows, max_length=512)), trouble


def test_too_many_rounds_over_few_rows(train, tmp_path):
    people = embedded("people-en")
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(r) + "\n" for r in people[100:140]), "utf-8")
    assert OVERFIT in names(train(people[:16], eval_data=str(held), eval_steps=5, max_steps=60, learning_rate=2e-3))


def test_one_task_at_a_high_rate_forgets(train, capsys):
    narrow = [r | {"output": r["output"].rstrip(".").split()[-1]} for r in embedded("opposites-en")]
    run = train(narrow, learning_rate=2e-3)
    assert names(run) == []
    assert main(["eval", "builtin", str(run), "--data", str(run.parent / "rows.jsonl"), "--limit", "8",
                 "--max_new_tokens", "8", "--gate", "--general", "builtin:facts[#60]", "--output_dir",
                 str(run.parent / "eval"), "--device", "cpu"]) == 1
    assert "CLOSED" in capsys.readouterr().out
    assert names(run) == [FORGETTING]


def test_a_model_whose_stop_was_changed(healthy, tmp_path):
    run = shutil.copytree(healthy, tmp_path / "run")
    path = run / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 7}))
    trouble, = examine(run)
    assert trouble.name == STOPS and "generation_config.json ends at [7]" in trouble.evidence[0]


def test_every_rule_has_its_trouble_here():
    assert len(RULES) == len({MASKED, FORMAT, FORGETTING, STILL, OVERFIT, STOPS, ROWS, FEW, EXPLODES})
