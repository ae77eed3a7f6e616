"""The judge: what it is shown, what counts as a verdict, and the counts over a small made-up contest."""

import json

import pytest

from posttrain.core.errors import UserError
from posttrain.eval.judge import Judgement, Talk, converse, duel, questions, ratings, read_talks, settle


def talk(name="1", turns=("Q1", "Q2"), **more):
    return Talk(name, more.pop("category", "math"), list(turns), **more)


def test_turns_are_held_with_their_history():
    seen = []

    def answers(conversations):
        seen.append(conversations)
        return [f"a{len(c)}" for c in conversations]

    talks = [talk(), talk("2", ["only"])]
    converse(talks, answers)
    assert talks[0].answers == [["a1", "a3"]] and talks[1].answers == [["a1"]]
    assert [m["content"] for m in seen[1][0]] == ["Q1", "a1", "Q2"] and len(seen[1]) == 1


def test_each_turn_is_rated_and_pairs_come_in_both_orders():
    made = talk(answers=[["x1", "x2"], ["y1", "y2"]], reference=["good one", "good two"])
    asked = questions([made], 2)
    assert [j.models for j in asked] == [(0,), (0,), (1,), (1,), (0, 1), (1, 0), (0, 1), (1, 0)]
    shown = asked[0].messages[1]["content"]
    assert "x1" in shown and "good one" in shown and "Q2" not in shown and "good two" not in shown and "y1" not in shown
    one, other = (asked[i].messages[1]["content"] for i in (6, 7))
    assert one.index("x2") < one.index("y2") and other.index("y2") < other.index("x2")
    assert len(questions([made], 1)) == 2


@pytest.mark.parametrize(("reply", "verdict"), [
    ("Good. [[7]]", 7.0), ("[[7.5]]", 7.5), ("a 7", None), ("[[11]]", None), ("[[0]]", None), ("[[7]] or [[8]]", None),
    ("[[7]], I repeat [[7]]", 7.0), ("[[A]]", None), ("", None)])
def test_a_rating_is_read_or_counted_never_guessed(reply, verdict):
    asked = Judgement("1", 0, (0,), [])
    settle(asked, reply)
    assert asked.verdict == verdict and asked.reply == reply


@pytest.mark.parametrize(("reply", "order", "verdict"), [
    ("[[A]]", (0, 1), 0), ("[[A]]", (1, 0), 1), ("[[B]]", (1, 0), 0), ("[[C]]", (0, 1), -1),
    ("[[A]][[B]]", (0, 1), None), ("[[5]]", (0, 1), None)])
def test_a_choice_names_a_model(reply, order, verdict):
    asked = Judgement("1", 0, order, [])
    settle(asked, reply)
    assert asked.verdict == verdict


def contest(*verdicts):
    return [Judgement(str(i), 0, order, [], verdict=v) for i, pair in enumerate(verdicts)
            for order, v in zip(((0, 1), (1, 0)), pair, strict=True)]


def test_a_win_needs_both_orders():
    found = duel(contest((0, 0), (1, 1), (1, 1), (0, 1), (-1, -1), (None, 1), (1, -1)))
    assert (found["pairs"], found["unparsable"], found["first"], found["second"], found["ties"]) == (7, 1, 1, 2, 3)
    assert found["agree"] == 4 / 6 and found["second_wins"] == 2 / 3 and found["p"] == 1.0


def test_ratings_by_turn_and_category():
    talks = [talk("1"), talk("2", category="writing")]
    asked = [Judgement(t, turn, (0,), [], verdict=v) for t, turn, v in
             (("1", 0, 4.0), ("1", 1, 6.0), ("2", 0, 9.0), ("2", 1, None))]
    found = ratings(asked, talks, 0, seed=0)
    assert found["rating"]["value"] == 19 / 3 and found["unparsable"] == 1 and found["asked"] == 4
    assert found["turns"]["1"]["value"] == 6.5 and found["turns"]["2"]["value"] == 6.0
    assert found["categories"]["math"]["value"] == 5.0 and found["categories"]["writing"]["value"] == 9.0
    assert found["rating"]["low"] <= 19 / 3 <= found["rating"]["high"]
    assert ratings([], talks, 1, seed=0)["rating"] == {"value": None, "low": None, "high": None}


def test_the_files_of_mt_bench(shared_data):
    folder = shared_data / "fastchat"
    talks = read_talks(folder / "mt_bench_question.jsonl", folder / "mt_bench_reference_gpt-4.jsonl")
    assert len(talks) == 80 and all(len(t.turns) == 2 for t in talks)
    assert sum(bool(t.reference) for t in talks) == 30 and len({t.category for t in talks}) == 8
    assert len(read_talks(folder / "mt_bench_question.jsonl", limit=3)) == 3


@pytest.mark.parametrize(("text", "message"), [
    ('{"turns": ["a"]}\n{"prompt": "b"}\n', "a line is no question for a judge"), ("{\n", "a line is no question"),
    ('{"turns": []}\n', "a question has no turns"), ("\n", "the file holds no questions")])
def test_a_broken_file(tmp_path, text, message):
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        read_talks(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="the file of questions cannot be read"):
        read_talks(tmp_path / "none.jsonl")


def test_the_verb_from_end_to_end(tmp_path, capsys, monkeypatch):
    from posttrain.app import judge as verb
    from posttrain.app.arguments import parse
    from posttrain.eval.answers import Answer

    class Played:
        def __init__(self, name):
            self.name = name

        def check(self):
            pass

        def describe(self):
            return self.name

        def answers(self, conversations, **how):
            def reply(messages):
                if messages[0]["role"] != "system":
                    return self.name[-1] * len(messages)
                text = messages[1]["content"]
                if "Assistant B" not in text:
                    return "[[8]]" if "b" in text.split("=" * 40)[3] else "fine"
                return "[[A]]" if text.index("\nb") < text.index("\na") else "[[B]]"
            return [Answer(reply(m), [], True) for m in conversations]

    monkeypatch.setattr("posttrain.eval.endpoint.Endpoint", Played)
    path, out = tmp_path / "q.jsonl", tmp_path / "out"
    path.write_text(json.dumps({"question_id": 1, "category": "x", "turns": ["one?", "two?"]}) + "\n")
    command = parse(["judge", "http://a", "http://b", "--questions", str(path), "--judge", "http://judge",
                     "--output_dir", str(out), "--json"])
    assert verb.main(command) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "judge.json").read_text())
    assert [m["rating"]["value"] for m in told["models"]] == [None, 8.0]
    assert [m["unparsable"] for m in told["models"]] == [2, 0]
    assert (told["pair"]["first"], told["pair"]["second"], told["pair"]["agree"]) == (0, 2, 1.0)
    rows = [json.loads(line) for line in (out / "judgements.jsonl").read_text().splitlines()]
    assert len(rows) == 8 and all(r["messages"] and r["reply"] for r in rows)


@pytest.mark.parametrize(("argv", "message"), [
    (["a", "--questions", "q"], "the judge needs --judge"),
    (["a", "--judge", "http://x"], "the judge needs --questions"),
    (["a", "b", "c", "--judge", "http://x", "--questions", "q"], "a judge compares at most two models")])
def test_what_the_verb_needs(argv, message):
    from posttrain.app.arguments import parse
    from posttrain.app.judge import main

    with pytest.raises(UserError, match=message):
        main(parse(["judge", *argv]))
