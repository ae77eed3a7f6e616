"""Every rule of the doctor on a run with its planted trouble, and silence on a healthy one."""

from __future__ import annotations

import json
import random
import shutil

import pytest

import posttrain
from posttrain.app.cli import main
from posttrain.core.errors import UserError
from posttrain.eval.doctor import RULES, Facts, examine

pytestmark = pytest.mark.usefixtures("in_process_module")


@pytest.fixture(scope="module")
def train(tiny_model, rows, tmp_path_factory, in_process_module):
    """A function that trains a run on the tiny model."""
    def run(**values):
        asked = {"model": tiny_model, "data": str(rows), "method": "full", "learning_rate": 3e-3, "batch_size": 8,
                 "max_steps": 40, "dtype": "float32", "device": "cpu",
                 "output_dir": tmp_path_factory.mktemp("runs") / "run"}
        return posttrain.sft(**(asked | values)).path
    return run


@pytest.fixture(scope="module")
def healthy(train):
    return train(eval_split=0.1, eval_steps=10)


@pytest.fixture
def copy(healthy, tmp_path):
    """The healthy run, to be changed."""
    return shutil.copytree(healthy, tmp_path / "run")


def names(folder):
    return [t.name for t in examine(folder)]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_a_healthy_run_is_healthy(healthy, capsys):
    assert names(healthy) == []
    assert main(["doctor", str(healthy)]) == 0 and f"nothing found ({len(RULES)} rules)" in capsys.readouterr().out


def test_the_rate_is_too_small(train, capsys):
    folder = train(learning_rate=1e-9)
    assert names(folder) == ["the loss does not fall"]
    assert main(["doctor", str(folder), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["troubles"][0]
    assert "learning_rate 1e-09; 2e-05 is usual" in found["evidence"][1]
    assert found["change"] == "set learning_rate: 2e-05"


def test_exploding_gradients(train):
    trouble = examine(train(learning_rate=3.0, max_grad_norm=0, warmup_ratio=0))[0]
    assert trouble.name == "exploding gradients" and "set max_grad_norm: 1.0" in trouble.change


@pytest.mark.parametrize(("change", "rate", "found"), [
    ([0.0] * 40, 1e-9, ["the loss does not fall"]), ([-0.02 * i for i in range(40)], 1e-9, []),
    ([-0.02 * i for i in range(40)], 2e-5, []), ([2.0 if i else 0.0 for i in range(40)], 2e-5, ["exploding gradients"]),
    ([-0.03 * i if i < 20 else 0.0 for i in range(40)], 2e-5, ["exploding gradients"])])
def test_one_batch_against_another_is_no_fall_and_no_rise(change, rate, found, tmp_path):
    """Batches differ by a sixth: what the rules see is not the luck of the first and the last."""
    (tmp_path / "config.yaml").write_text(f"model: m\nmethod: full\nlearning_rate: {rate}\nmax_grad_norm: 1.0\n"
                                          f"data: [{tmp_path / 'gone.jsonl'}]\n")
    for luck in range(10):
        draw = random.Random(luck)
        (tmp_path / "metrics.jsonl").write_text("".join(
            json.dumps({"step": i + 1, "loss": 1.0 + c + draw.gauss(0, 0.15), "grad_norm": 1.0}) + "\n"
            for i, c in enumerate(change)))
        assert names(tmp_path) == found, luck


def test_nearly_everything_is_masked(train, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", [{"prompt": f"say {i} " + "red green blue " * 60, "completion": "."}
                                             for i in range(80)])
    assert "nearly everything is masked" in names(train(data=data, max_steps=30))


def test_conversations_as_plain_text(train, tmp_path):
    data = write_rows(tmp_path / "d.jsonl", [{"text": f"User: say {w}\nAssistant: {w}"} for w in ("red", "two") * 40])
    assert "conversations are read as plain text" in names(train(data=data, max_steps=30))


def test_overfitting(train, tmp_path):
    words = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun")
    data, held = (write_rows(tmp_path / name, [{"prompt": f"say {i}", "completion": w} for i, w in enumerate(order)])
                  for name, order in (("d.jsonl", words), ("h.jsonl", words[::-1])))
    found = examine(train(data=data, eval_data=held, eval_steps=5, max_steps=60, batch_size=10))
    trouble = next(t for t in found if t.name == "overfitting")
    assert "validation loss" in trouble.evidence[0] and "max_steps: " in trouble.change


def test_forgetting(copy):
    check = {"model": str(copy), "data": "general", "figure": "perplexity", "before": 10.0, "after": 14.0, "drop": 0.4,
             "max_forgetting": 0.1, "passes": False}
    result = {"models": [{"model": "builtin", "stops": {"value": 1.0}}, {"model": str(copy), "stops": {"value": 1.0}}],
              "gate": {"passes": False, "max_forgetting": 0.1, "checks": [check]}}
    beside = copy.parent / "eval-1"
    beside.mkdir()
    (beside / "eval.json").write_text(json.dumps(result))
    assert names(copy) == ["forgetting"]
    assert "perplexity on general: 10 → 14, a drop of 40.0%" in examine(copy)[0].evidence[0]
    check["passes"] = True
    (beside / "eval.json").write_text(json.dumps(result))
    assert names(copy) == []


def test_the_stop_is_lost(copy):
    path = copy / "model" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": 7}))
    trouble = examine(copy)[0]
    assert trouble.name == "wrong style, or never stops"
    assert "but generation_config.json ends at [7]" in trouble.evidence[0]


def test_the_template_was_changed(copy):
    (copy / "model" / "chat_template.jinja").write_text("{{ messages }}")
    assert "is not the template of the training" in examine(copy)[0].evidence[0]


def test_sampled_answers_never_stop(copy):
    path = copy / "samples.jsonl"
    lines = [json.loads(x) | {"stopped": False} for x in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert "0 of 4 answers sampled at update 40 end by themselves" in examine(copy)[0].evidence[0]


def test_contradicting_and_duplicated_rows(train, tmp_path):
    rival = [{"prompt": f"say {i % 20}", "completion": w} for i, w in enumerate(["red"] * 20 + ["blue"] * 20)]
    trouble = next(t for t in examine(train(data=write_rows(tmp_path / "r.jsonl", rival))) if "rows" in t.name)
    assert trouble.evidence[0].startswith("40 of 40 rows give different answers")
    copies = [{"prompt": f"say {i % 10}", "completion": "red"} for i in range(40)]
    trouble = next(t for t in examine(train(data=write_rows(tmp_path / "c.jsonl", copies))) if "rows" in t.name)
    assert "30 of 40 rows are exact copies" in trouble.evidence[0]


def test_too_few_updates(train):
    assert names(train(max_steps=12)) == ["too few updates"]


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="this folder is no run"):
        Facts(tmp_path)
