"""A reward model as judge of talks, and rewards as figures of an evaluation."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import posttrain
from posttrain.app.cli import main
from posttrain.core.config import Settings
from posttrain.eval.judge import Judgement, Talk, duel_by_score, ratings, take, to_score

CPU = ("--device", "cpu", "--dtype", "float32")


@pytest.fixture(scope="module")
def judge(tiny_model, tmp_path_factory, in_process_module):
    """A reward model of the tiny model, an update old."""
    folder = tmp_path_factory.mktemp("reward")
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {a}", "chosen": f"{a} {b}.", "rejected": b}) + "\n"
                            for a in ("red", "green") for b in ("one", "two", "six")))
    posttrain.reward(model=tiny_model, data=path, max_steps=2, batch_size=6, dtype="float32", learning_rate=1e-2,
                     output_dir=folder / "run", console=Console(file=io.StringIO()))
    return folder / "run"


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "category": "x", "turns": ["say red", "say two"]}\n'
                    '{"question_id": 2, "category": "y", "turns": ["say green"]}\n')
    return path


def test_each_model_is_shown_its_own_talk():
    made = Talk("1", "", ["Q1", "Q2"], answers=[["x1", "x2"], ["y1", "y2"]])
    asked = to_score([made], 2)
    assert [j.models for j in asked] == [(0,), (0,), (1,), (1,)] and [j.turn for j in asked] == [0, 1, 0, 1]
    assert [m["content"] for m in asked[1].messages] == ["Q1", "x1", "Q2", "x2"]
    assert [m["content"] for m in asked[2].messages] == ["Q1", "y1"]


def test_the_higher_score_wins_and_nothing_is_guessed():
    scores = ((1.0, 2.0), (-3.0, -4.0), (0.5, 0.5), (None, 9.0), (0.0, 12.0))
    asked = [Judgement(str(i), 0, (m,), [], verdict=s) for i, pair in enumerate(scores) for m, s in enumerate(pair)]
    found = duel_by_score(asked)
    assert (found["pairs"], found["unparsable"], found["first"], found["second"], found["ties"]) == (5, 1, 1, 2, 1)
    assert found["second_wins"] == 2 / 3 and found["p"] == 1.0 and found["agree"] is None
    talks = [Talk(str(i), "", ["Q"]) for i in range(5)]
    mean = ratings(asked, talks, 1, seed=0)
    assert mean["rating"]["value"] == (2 - 4 + 0.5 + 9 + 12) / 5  # no scale of 1 to 10 clips or refuses them
    lost = Judgement("1", 0, (0,), [])
    take(lost, "longer than max_length")
    assert lost.verdict is None and lost.reply == "longer than max_length"


def test_a_talk_has_the_score_that_the_verb_gives(judge, capsys):
    from posttrain.eval.reward_model import RewardModel

    opened = RewardModel(str(judge), Settings(dtype="float32", device="cpu"))
    talk = [{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red two."}]
    empty = [talk[0], {"role": "assistant", "content": ""}]
    long = [talk[0], {"role": "assistant", "content": "red " * 2000}]
    first, refused, blank = opened.talks([talk, long, empty])
    assert main(["score", str(judge), "--prompt", "say red", "--answer", "red two.", "--json", *CPU]) == 0
    assert first == pytest.approx(json.loads(capsys.readouterr().out)["scores"][0], abs=1e-5)
    assert (refused, blank) == ("longer than max_length", "empty answer")


def test_the_verb_with_a_reward_model(judge, tiny_model, questions, tmp_path, capsys):
    from posttrain.eval.reward_model import RewardModel

    out = tmp_path / "out"
    assert main(["judge", str(tiny_model), str(judge.parent / "other"), "--questions", str(questions)]) == 2
    capsys.readouterr()
    argv = ["judge", str(tiny_model), str(tiny_model), "--questions", str(questions), "--judge", str(judge),
            "--max_new_tokens", "4", "--output_dir", str(out), "--json", *CPU]
    assert main(argv) == 0
    said, err = capsys.readouterr()
    told = json.loads(said)
    assert told["scale"].startswith("raw scores of a reward model") and told["judge"] == f"{judge}, a reward model"
    assert (told["pair"]["pairs"], told["pair"]["ties"], told["pair"]["unparsable"]) == (3, 3, 0)
    assert "mean score" in err and "by the higher score; 0 without a score" in err and " of 10" not in err
    rows = [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]
    opened = RewardModel(str(judge), Settings(dtype="float32", device="cpu"))
    assert [r["verdict"] for r in rows] == pytest.approx(opened.talks([r["messages"] for r in rows]), abs=1e-5)
    assert told["models"][0]["rating"]["value"] == pytest.approx(sum(r["verdict"] for r in rows[:3]) / 3)


@pytest.mark.parametrize(("more", "message"), [
    ((), "the judge gives words, not scores"),
    (("--reference", "good.jsonl"), "a reward model reads no good answers")])
def test_what_cannot_judge(tiny_model, questions, more, message, capsys):
    assert main(["judge", str(tiny_model), "--questions", str(questions), "--judge", str(tiny_model), *more]) == 2
    assert message in capsys.readouterr().err


def test_rewards_are_figures(judge, tiny_model, tmp_path, capsys):
    pytest.importorskip("sacrebleu")
    data, function, out = tmp_path / "rows.jsonl", tmp_path / "fn.py", tmp_path / "out"
    data.write_text('{"question": "say red 1", "answer": "so 1"}\n{"question": "say red 22", "answer": "so 22"}\n')
    function.write_text("def score(prompts, answers, rows):\n"
                        "    return [float(p.split()[-1]) + (r == {'answer': 'so ' + p.split()[-1]})\n"
                        "            for p, r in zip(prompts, rows)]\n")
    argv = ["eval", str(tiny_model), str(tiny_model), "--data", str(data), "--max_new_tokens", "3", "--output_dir",
            str(out), "--json", *CPU]
    names = (f"{function}:score", "gsm8k", "length:7", str(judge))
    assert main([*argv, *(part for name in names for part in ("--reward", name))]) == 0
    said, err = capsys.readouterr()
    one, two = json.loads(said)["models"]
    assert one[f"reward: {function}:score"]["value"] == (2 + 23) / 2
    assert two[f"reward: {function}:score"]["difference"]["value"] == 0 and one["reward: gsm8k"]["value"] in (0, 0.5, 1)
    rows = [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]
    for name in names:
        scores = [r["models"][0]["rewards"][name] for r in rows]
        assert one[f"reward: {name}"]["value"] == pytest.approx(sum(scores) / 2), name
    lengths = [max(0.0, 1 - abs(len(r["models"][0]["answer"]) - 7) / 7) for r in rows]
    assert [r["models"][0]["rewards"]["length:7"] for r in rows] == pytest.approx(lengths)
    assert "reward: gsm8k" in err and "reward: gsm8k" in (out / "report.html").read_text()


@pytest.mark.parametrize(("argv", "message"), [
    (["--data", "builtin:facts", "--reward", "exact"], "a reward scores answers, and these rows ask for none"),
    (["--data", "builtin:held_out", "--reward", "gsmk8"], "did you mean gsm8k?"),
    (["--benchmarks", "gsm8k", "--reward", "gsm8k"], "the harness's tasks bring their own rows")])
def test_what_no_reward_can_score(argv, message, tiny_model, capsys, tmp_path):
    assert main(["eval", str(tiny_model), *argv, "--limit", "2", *CPU, "--output_dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
