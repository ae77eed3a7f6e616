"""Units of text, loops, variety, and which script a text is in."""

from __future__ import annotations

import numpy as np
import pytest

from posttrain.eval.intervals import interval
from posttrain.eval.words import distinct, repeats, said, script_of, units


def test_units_are_words_signs_and_han_characters():
    assert units("It's 3 o'clock, 我爱 北京!") == [*["It", "'", "s", "3", "o", "'", "clock", ","], *"我爱北京!"]


@pytest.mark.parametrize(("text", "script"), [
    ("The capital of France is Paris.", "latin"), ("Привет, как дела?", "latin"), ("法国的首都是巴黎。", "zh"),
    ("フランスの首都はパリです。", "ja"), ("프랑스의 수도는 파리입니다.", "ko"), ("", "latin"),
    ("An answer in English that names 北京 once.", "zh")])
def test_script(text, script):
    assert script_of([text]) == script


def test_a_thought_is_not_judged():
    assert said("<think>\n2 and 2\n</think>\n\n 4 ") == "4" and said(" the <think> tag ") == "the <think> tag"


def test_a_loop_is_seen_and_a_list_is_none():
    assert repeats("A thread shares the memory of its process. " * 5) and repeats("哈" * 30)
    assert not repeats("One is red. Two is green. Three is blue. Four is black.")
    assert not repeats("yes") and not repeats("")


def test_distinct_is_over_all_answers():
    texts = ["a b a b", "a c", "d"]
    assert distinct(texts, 1).value == pytest.approx(4 / 7) and distinct(texts, 2).value == pytest.approx(3 / 4)
    assert distinct(["a", "b"], 2) is None and distinct([""], 1) is None


def test_the_interval_of_distinct_holds_its_value():
    rng = np.random.default_rng(0)
    found = interval(distinct([" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(60)], 2))
    assert found.low < found.value < found.high < 0.5
