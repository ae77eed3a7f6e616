"""Votes: sides, rows, intervals and the sign test against values worked out by hand or printed elsewhere."""

import json

import pytest

from posttrain.core.errors import UserError
from posttrain.eval.votes import CRITERIA, a_is_left, make_vote, outcome, read_votes, sign_test, wilson

ASKED = [{"role": "user", "content": "Who?"}]
SAME = dict.fromkeys(CRITERIA, "left")


def test_the_sign_test_is_the_binomial():
    assert sign_test(0, 0) is None
    assert sign_test(5, 5) == 1.0
    assert sign_test(0, 6) == sign_test(6, 0) == 2 / 64
    assert sign_test(2, 8) == 2 * (1 + 10 + 45) / 1024


def test_wilson_is_the_printed_interval():
    """81 of 263: (0.255289, 0.366156), Newcombe 1998, table 1, method 3."""
    rate, low, high = wilson(81, 263)
    assert rate == 81 / 263
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20)[1] == 0.0 and round(wilson(0, 20)[2], 4) == 0.1611
    assert wilson(0, 0) == (None, None, None)


def test_sides_are_fair_and_stay():
    sides = [a_is_left(0, ASKED, str(i), "b") for i in range(400)]
    assert 150 < sum(sides) < 250
    assert sides == [a_is_left(0, ASKED, str(i), "b") for i in range(400)]
    assert sides != [a_is_left(1, ASKED, str(i), "b") for i in range(400)]


@pytest.mark.parametrize(("left", "verdict"), [(True, "a"), (False, "b")])
def test_a_vote_on_a_side_is_one_on_a_model(left, verdict):
    vote = make_vote(ASKED, "one", "two", ("base", "tuned"), left, SAME | {"honest": "both bad", "comment": "hm"})
    assert vote["verdict"] == vote["helpful"] == vote["harmless"] == vote["left"] == verdict
    assert vote["honest"] == "both bad" and vote["comment"] == "hm"
    assert (vote["model_a"], vote["model_b"], vote["a"], vote["b"]) == ("base", "tuned", "one", "two")


def test_the_verdict_is_what_more_criteria_chose():
    cast = {"helpful": "left", "harmless": "right", "honest": "tie"}
    assert make_vote(ASKED, "x", "y", ("m", "n"), True, cast)["verdict"] == "tie"


def test_an_incomplete_vote_is_refused():
    with pytest.raises(UserError, match="the vote is not complete") as caught:
        make_vote(ASKED, "x", "y", ("m", "n"), True, {"helpful": "left", "harmless": "up"})
    assert caught.value.where == "harmless, honest"
    with pytest.raises(UserError, match="the comment is no text, or too long"):
        make_vote(ASKED, "x", "y", ("m", "n"), True, SAME | {"comment": "x" * 5000})


def test_the_outcome_counts_and_compares():
    votes = [make_vote(ASKED, str(i), "b", ("m", "n"), i < 2, SAME) for i in range(8)]
    found = outcome(votes)["helpful"]
    assert (found["a"], found["b"], found["tie"], found["both bad"]) == (2, 6, 0, 0)
    assert found["b_wins"] == 0.75 and found["p"] == 2 * (1 + 8 + 28) / 256
    assert outcome([])["verdict"]["b_wins"] is None


def test_a_file_of_other_lines_is_refused(tmp_path):
    path = tmp_path / "votes.jsonl"
    assert read_votes(path) == []
    vote = make_vote(ASKED, "x", "y", ("m", "n"), True, SAME)
    path.write_text(json.dumps(vote) + '\n{"prompt": "not a vote"}\n')
    with pytest.raises(UserError, match="this line is no vote") as caught:
        read_votes(path)
    assert caught.value.where == f"{path}:2"
