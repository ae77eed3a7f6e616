"""`posttrain score`, and the judgement at the end of `posttrain reward`."""

from __future__ import annotations

import io
import json
import math
import shutil

import pytest
from rich.console import Console

import posttrain
from posttrain.app.cli import main
from posttrain.core.errors import UserError
from posttrain.eval.preferences import Margins, lines

pytestmark = pytest.mark.usefixtures("in_process")
WORDS = ("red", "green", "blue", "one", "two", "three")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {a}", "chosen": f"{a} {b}.", "rejected": b}) + "\n"
                            for a in WORDS for b in WORDS if a != b))
    return path


@pytest.fixture
def run(tiny_model, pairs, tmp_path):
    out = io.StringIO()
    made = posttrain.reward(model=tiny_model, data=pairs, max_steps=8, batch_size=10, dtype="float32", eval_split=0.3,
                            learning_rate=3e-3, output_dir=tmp_path / "run", console=Console(file=out, width=200))
    made.said = out.getvalue()
    return made


def test_the_judgement_of_a_reward_run(run):
    found = json.loads((run.path / "reward.json").read_text())
    assert found["pairs"] == 9 and found["accuracy"]["value"] == run.metrics[-1]["eval_accuracy"]
    assert found["margin"] == pytest.approx(run.metrics[-1]["eval_margin"], rel=1e-5)
    assert sum(b["pairs"] for b in found["histogram"]) == sum(b["pairs"] for b in found["calibration"]) == 9
    assert sum(b["pairs"] for b in found["by_length"].values()) == 9
    assert "pairs 9: the better answer scores higher in" in run.said and "calibration: off by" in run.said
    assert "posttrain score" in run.said and "posttrain chat" not in run.said


def test_a_run_without_held_out_pairs_says_so(tiny_model, pairs, tmp_path):
    out = io.StringIO()
    posttrain.reward(model=tiny_model, data=pairs, max_steps=1, dtype="float32", output_dir=tmp_path / "r",
                     console=Console(file=out, width=200))
    assert "held-out pairs: none; set eval_split or eval_data" in out.getvalue()


def test_rows_and_answers_are_scored(run, pairs, capsys):
    assert main(["score", str(run.path), str(pairs), "--limit", "4", "--dtype", "float32"]) == 0
    said = capsys.readouterr().out
    assert f"{pairs}:4 " in said and f"{pairs}:5 " not in said and "pairs 4: the better answer" in said
    assert main(["score", str(run.path), str(pairs), "--json", "--dtype", "float32"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(rows) == 31 and rows[-1]["pairs"] == 30
    one = ["score", str(run.path), "--prompt", "say red", "--json", "--dtype", "float32", "--answer"]
    for n, answer in enumerate(("red green.", "green")):
        assert main([*one, answer]) == 0
        (score,) = json.loads(capsys.readouterr().out)["scores"]
        assert score == pytest.approx(rows[0]["scores"][n], abs=1e-4)


def test_conversations_and_labels_are_scored_and_what_is_not_says_why(run, tmp_path, capsys):
    path = tmp_path / "talks.jsonl"
    path.write_text('{"prompt": "say red", "completion": "red green."}\n{"prompt": "say red", "completion": ""}\n')
    assert main(["score", str(run.path), str(path), "--json", "--dtype", "float32"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert len(first["scores"]) == 1 and second["dropped"] == "empty answer"
    path.write_text('{"prompt": "a", "completion": "b", "label": true}\n')
    assert main(["score", str(run.path), str(path), "--json", "--dtype", "float32"]) == 0
    assert json.loads(capsys.readouterr().out)["labels"] == [True]
    assert main(["score", str(run.path), "--answer", "x"]) == 2
    assert "add --prompt TEXT" in capsys.readouterr().err
    assert main(["score", str(run.path), "--prompt", "x"]) == 2
    assert "there is no answer to score" in capsys.readouterr().err


def test_an_answer_of_nothing(run, capsys):
    """It is the prompt and the token that ends a turn, as in PPO."""
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.resolve import resolve_model
    from posttrain.model.reward import open_scorer
    from posttrain.train.rollout import lay

    spec = load_tokenizer(str(run.model_path))
    prompt = Renderer(spec).prompt([{"role": "user", "content": "say red"}])
    (own,) = open_scorer(resolve_model(run), dtype="float32")([lay(prompt, spec.stop_ids[:1], True, "x")])
    for answer in ("", " \n"):
        assert main(["score", str(run.path), "--prompt", "say red", "--answer", answer, "--json", "--dtype",
                     "float32"]) == 0
        assert json.loads(capsys.readouterr().out) == {"prompt": "say red", "scores": [pytest.approx(own, abs=1e-5)]}


@pytest.fixture
def bert(run, tmp_path):
    """A BERT of 64 positions that scores, with the tiny model's tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path / "bert"
    shutil.copytree(run.model_path, folder)
    for file in (*folder.glob("*.safetensors"), *folder.glob("adapter_config.json"), folder / "base.json"):
        file.unlink()
    BertForSequenceClassification(BertConfig(
        vocab_size=512, hidden_size=16, num_hidden_layers=1, num_labels=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=64)).save_pretrained(folder)
    return folder


def test_rows_longer_than_the_reward_models_positions_are_dropped(bert, tmp_path, capsys):
    (path := tmp_path / "long.jsonl").write_text("".join(
        json.dumps({"prompt": "say red", "completion": "red" + " red" * n}) + "\n" for n in (1, 300)))
    for more in ((), ("--max_length", "4000")):
        assert main(["score", str(bert), str(path), "--json", "--dtype", "float32", *more]) == 0
        first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
        assert len(first["scores"]) == 1 and second["dropped"] == "first exchange longer than max_length"
    assert main(["score", str(bert), str(path), "--dtype", "float32"]) == 0
    assert "not scored: 1 rows" in capsys.readouterr().out
    assert main(["score", str(bert), "--prompt", "say red", "--answer", "red " * 300, "--dtype", "float32"]) == 2
    assert capsys.readouterr().err == (
        "error: the answer cannot be scored\n  where:    command line\n"
        "  found:    first exchange longer than max_length\n  expected: at most 64 tokens with the prompt\n"
        "  fix:      shorten it, or raise max_length where the reward model reads longer texts\n")


def test_ppo_says_that_an_answer_is_longer_than_the_reward_models_positions(bert, tiny_model, pairs, tmp_path):
    with pytest.raises(UserError) as e:
        posttrain.ppo(model=tiny_model, data=pairs, reward=str(bert), max_steps=2, batch_size=4, dtype="float32",
                      max_new_tokens=80, minibatches=1, output_dir=tmp_path / "ppo",
                      console=Console(file=io.StringIO()))
    assert str(e.value).startswith("error: a text is longer than the reward model's positions\n"
                                   f"  where:    reward model: {bert}\n  found:    ")
    assert "  expected: at most 64\n  fix:      set max_length and max_new_tokens so that prompt" in str(e.value)


def test_the_figures_of_margins():
    found = Margins()
    for better, worse, a, b in ((2.0, 0.0, 10, 20), (0.0, 1.0, 20, 10), (0.3, 0.0, 10, 10), (5.0, 0.0, 30, 10)):
        found.add(better, worse, a, b)
    report = found.to_json()
    assert report["pairs"] == 4 and report["margin"] == (2 - 1 + 0.3 + 5) / 4
    p, n, z = 0.75, 4, 1.959963984540054
    middle, half = (p + z * z / 8) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * 0.25 / n + z * z / 64)
    assert report["accuracy"] == {"value": 0.75, "low": pytest.approx(middle - half),
                                  "high": pytest.approx(middle + half)}
    assert [(b["from"], b["to"], b["pairs"]) for b in report["histogram"] if b["pairs"]] == [
        (-1.0, -0.5, 1), (0.0, 0.5, 1), (2.0, 4.0, 1), (4.0, None, 1)]
    assert [b["pairs"] for b in report["calibration"]] == [1, 0, 1, 1, 1]
    sure = [1 / (1 + math.exp(-m)) for m in (0.3, 1, 2, 5)]
    assert report["calibration_error"] == pytest.approx((1 - sure[0] + sure[1] + 1 - sure[2] + 1 - sure[3]) / 4)
    assert {k: (v["value"], v["pairs"]) for k, v in report["by_length"].items()} == {
        "the better one is shorter": (1, 1), "about the same length": (1, 1), "the better one is longer": (0.5, 2)}
    assert report["prefers_the_longer"] == 0.25
    assert lines(Margins().to_json()) == [] and "right in 100.0%" in "\n".join(lines(report))
