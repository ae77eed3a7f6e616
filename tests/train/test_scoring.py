"""A reward function that raises, hangs, or returns what is no reward: each is one clear error."""

import threading
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from posttrain.core.errors import UserError
from posttrain.train.scoring import ask_reward

ASKED = (["q1", "q2"], ["a1", "a2"], [{"answer": "a1"}, {"answer": "x"}])


def error_of(score, **how) -> str:
    with pytest.raises(UserError) as e:
        ask_reward(score, "fn.py:score", *ASKED, **how)
    return str(e.value)


def test_the_function_sees_prompts_answers_and_rows():
    seen = []

    def score(prompts, answers, rows):
        seen.append((prompts, answers, rows))
        return [float(a == row["answer"]) for a, row in zip(answers, rows, strict=True)]
    assert ask_reward(score, "x", *ASKED) == [1.0, 0.0] and seen == [ASKED]


@pytest.mark.parametrize("made", [[1, 2], (True, 2.0), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]).numpy()])
def test_any_list_of_numbers_will_do(made):
    assert ask_reward(lambda *a: made, "x", *ASKED) == [1.0, 2.0]


@pytest.mark.parametrize("made", [
    [np.float32(1), np.float64(2)], [torch.tensor(1.0), torch.tensor(2, dtype=torch.bfloat16)],
    (np.array(1.0), Fraction(2)), [np.int64(1), Decimal(2)], [True, torch.tensor([2.0])]])
def test_whatever_float_takes_is_a_number(made):
    found = ask_reward(lambda *a: made, "x", *ASKED)
    assert found == [1.0, 2.0] and [type(x) for x in found] == [float, float]


def test_one_that_raises():
    def score(prompts, answers, rows):
        return [row["gold"] for row in rows]
    said = error_of(score)
    assert said.startswith("error: the reward function failed\n  where:    reward: fn.py:score\n"
                           "  found:    KeyError: 'gold', in ")
    assert "test_scoring.py:" in said and "fix:      call it by hand on this answer: 'a1'" in said


def test_one_that_hangs():
    held = threading.Event()
    assert error_of(lambda *a: held.wait(60), timeout=0.05) == (
        "error: the reward function does not return\n  where:    reward: fn.py:score\n"
        "  found:    no answer for 2 answers after 0.05 s\n"
        "  fix:      give its own calls a time limit, or score fewer answers at once with a smaller batch_size")
    held.set()


def test_a_wrong_count():
    assert error_of(lambda *a: [1.0]) == (
        "error: the reward function returned a wrong count of numbers\n  where:    reward: fn.py:score\n"
        "  found:    1\n  expected: 2, one per answer")


@pytest.mark.parametrize(("bad", "shown"), [
    (float("nan"), "nan"), (float("inf"), "inf"), (None, "None"), ("1", "'1'"), (b"1", "b'1'"),
    (np.float32("nan"), "nan"), (10**400, "1" + "0" * 199), ([1.0], "[1.0]"), (1j, "1j"),
    (torch.tensor([1, 2]), "tensor([1, 2])")])
def test_no_finite_number(bad, shown):
    assert error_of(lambda *a: [1.0, bad]) == (
        "error: the reward function returned something that is no finite number\n  where:    reward: fn.py:score\n"
        f"  found:    {shown} for the answer 'a2'\n  expected: a number")


def test_no_list():
    assert "returned no list\n  where:    reward: fn.py:score\n  found:    dict\n  expected: a list of 2 numbers" in (
        error_of(lambda *a: {}))


def test_one_that_abstains():
    def score(*a):
        return [None, 3]
    score.abstains, score.patience = True, None
    none, three = ask_reward(score, "x", *ASKED)
    assert none != none and three == 3.0
    held = threading.Event()

    def slow(*a):
        held.wait(60)
    slow.patience = 0.05
    assert "no answer for 2 answers after 0.05 s" in error_of(slow)
    held.set()


def test_a_users_own_error_comes_through():
    def score(*a):
        raise UserError("a row has no answer to compare with")
    assert error_of(score) == "error: a row has no answer to compare with"
