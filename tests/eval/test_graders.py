"""Rewards that ask something outside: unit tests in the sandbox, a judge played by a server in this process."""

from __future__ import annotations

import pytest
from serving import JsonHandler, served

from posttrain.core.errors import UserError
from posttrain.eval.graders import Judge, UnitTests
from posttrain.eval.sandbox import Verdict, check

HUMAN = {"prompt": "def half(x):\n    \"\"\" Half of x. \"\"\"\n", "entry_point": "half",
         "test": "def check(candidate):\n    assert candidate(5) == 2\n"}
MBPP = {"text": "Write a function to add.", "code": "def add(a, b):\n    return a + b",
        "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
RIGHT, WRONG = "    return x // 2\n", "    return x\n"
ADD = "Sure:\n```python\ndef add(a, b):\n    return a + b\n```"


def test_what_passes_every_test_is_one():
    try:
        check()
    except UserError as e:
        pytest.skip(f"no sandbox here: {e.found}")
    answers, rows = [RIGHT, WRONG, ADD, ADD.replace("+ b", "+ b + a"), ""], [HUMAN, HUMAN, MBPP, MBPP, MBPP]
    assert UnitTests()(["?"] * 5, answers, rows) == [1.0, 0.0, 1.0, 0.0, 0.0]


def test_equal_programs_are_run_once():
    seen = []
    grade = UnitTests(lambda trials: seen.extend(trials) or [Verdict("// 2" in t.program) for t in trials])
    assert grade(["?"] * 3, [RIGHT, WRONG, RIGHT], [HUMAN] * 3) == [1.0, 0.0, 1.0] and len(seen) == 2


def test_a_row_without_tests():
    with pytest.raises(UserError) as e:
        UnitTests()(["?"], [RIGHT], [{"prompt": "why?", "answer": "so"}])
    assert str(e.value) == ("error: a row is no code problem\n  where:    reward: tests\n  found:    prompt, answer\n"
                            "  expected: prompt, test, entry_point (HumanEval), or text or prompt, test_list (MBPP)")


class Handler(JsonHandler):
    """A judge that rates an answer by its last word, and has none for another."""

    seen: list = []

    def do_POST(self):
        asked = self.asked()
        self.seen.append(asked)
        said = asked["messages"][-1]["content"].rpartition("=" * 40)[0].split("\n")[-2].split()[-1]
        if said == "refuse":
            return self.send(b"", 500)
        return self.send({"choices": [{"message": {"content": f"Good. [[{said}]]"}, "finish_reason": "stop"}]})


@pytest.fixture(scope="module")
def url():
    with served(Handler) as at:
        yield f"{at}/v1#m"


def test_a_reply_without_a_rating_is_no_verdict(url):
    judge = Judge(url)
    answers = ["this is 7", "say 10", "nothing", "twice 3]]or[[4", "11", "0", "half 2.5"]
    assert judge(["Why?"] * 7, answers, [{}] * 7) == [7.0, 10.0, None, None, None, None, 2.5]
    system, question = Handler.seen[0]["messages"]
    assert "rating from 1 (useless) to 10" in system["content"] and Handler.seen[0]["temperature"] == 0
    assert "User, turn 1:" in question["content"] and "Why?" in question["content"]


def test_a_judge_that_refuses_stops_the_run(url):
    with pytest.raises(UserError, match="the endpoint refused"):
        Judge(url)(["Why?"], ["refuse"], [{}])
