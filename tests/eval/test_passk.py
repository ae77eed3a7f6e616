"""pass@k by its formula, problems of HumanEval and MBPP, and what an answer's program is."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from posttrain.app.cli import main
from posttrain.core.errors import UserError
from posttrain.eval.answers import Answer
from posttrain.eval.passk import judge_programs, pass_at_k, read_problems, tallies
from posttrain.eval.sandbox import Verdict, check

HUMAN = {"task_id": "T/0", "prompt": "from math import floor\n\n\ndef half(x):\n    \"\"\" Half of x. \"\"\"\n",
         "entry_point": "half", "canonical_solution": "    return floor(x / 2)\n",
         "test": "def check(candidate):\n    assert candidate(5) == 2\n"}
MBPP = {"task_id": 7, "text": "Write a function to add.", "code": "def add(a, b):\r\n\treturn a + b",
        "test_setup_code": "", "test_list": ["assert add(1, 2) == 3", "assert len([add(0, 0)]) == 1"]}


@pytest.fixture
def problems(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(HUMAN) + "\n" + json.dumps(MBPP) + "\n")
    return str(path)


@pytest.fixture
def held():
    try:
        check()
    except UserError as e:
        pytest.skip(f"no sandbox here: {e.found}")


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 5, 3), (10, 1, 10)])
def test_pass_at_k_is_the_share_of_all_draws(n, c, k):
    draws = list(itertools.combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(any(i < c for i in d) for d in draws) / len(draws))


def test_the_product_form_of_the_paper():
    for n, c, k in ((20, 3, 5), (100, 7, 10)):
        assert pass_at_k(n, c, k) == pytest.approx(1 - np.prod(1 - k / np.arange(n - c + 1, n + 1)))


def test_tallies_are_means_over_problems():
    verdicts = [[Verdict(i < c) for i in range(4)] for c in (0, 1, 4)]
    found = tallies(verdicts, [1, 2])
    assert found["pass@1"].value == pytest.approx((0 + 0.25 + 1) / 3)
    assert found["pass@2"].value == pytest.approx((0 + 0.5 + 1) / 3)


def test_problems_are_read(problems, tmp_path):
    human, mbpp = read_problems(problems)
    assert human.names == ("half",) and human.test.endswith("check(half)\n") and "from math import floor" in human.asked
    assert mbpp.names == ("add",) and "assert add(1, 2) == 3" in mbpp.asked and "\r" not in mbpp.solution
    assert len(read_problems(problems, 1)) == 1
    (tmp_path / "s.jsonl").write_text(json.dumps(MBPP | {"code": "import sys\ndef sum(a):\n    return a", "test_list": [
        "assert sum(1) == len([1])"]}) + "\n")
    shadow = read_problems(str(tmp_path / "s.jsonl"))[0]
    assert shadow.names == ("sum",) and shadow.before.strip() == "import sys"
    (tmp_path / "x.jsonl").write_text('{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(UserError, match="a row is no code problem") as caught:
        read_problems(str(tmp_path / "x.jsonl"))
    assert caught.value.where.endswith("x.jsonl:1") and "entry_point" in caught.value.expected


def test_programs_of_answers(problems, held):
    human, mbpp = read_problems(problems)
    answers = ["Sure!\n```python\ndef half(x):\n    return x // 2\n```\nDone.", "    return floor(x / 2)\n",
               "```py\ndef half(x):\n    return floor(x / 2)", "I cannot."]
    programs = [human.program(a) for a in answers]
    others = [mbpp.solution, mbpp.program("```\ndef add(a, b): return a\n```")]
    found = judge_programs([human, mbpp], [programs, others])
    assert [[v.passed for v in several] for several in found] == [[True, True, True, False], [True, False]]


def test_the_verb(problems, held, tmp_path, monkeypatch, capsys):
    right = "```python\ndef half(x):\n    return x // 2\ndef add(a, b):\n    return a + b\n```"
    said = [Answer(right, [], True), Answer("no", [], True)]
    monkeypatch.setattr("posttrain.eval.endpoint.Endpoint._call", lambda self, path, *_, **how: {"data": [{"id": "m"}]})
    monkeypatch.setattr("posttrain.eval.endpoint.Endpoint.answers", lambda self, asked, **how: said * (len(asked) // 2))
    argv = ["eval", "http://a/v1", "--code", problems, "--allow_code_execution", "--samples", "2", "--k", "1,2",
            "--temperature", "0.8", "--output_dir", str(tmp_path / "out"), "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["models"][0]["pass@1"]["value"] == 0.5 and found["models"][0]["pass@2"]["value"] == 1.0
    lines = [json.loads(x) for x in (tmp_path / "out" / "programs.jsonl").read_text().splitlines()]
    assert [x["passed"] for x in lines] == [True, False, True, False] and lines[0]["problem"] == "T/0"


@pytest.mark.parametrize(("argv", "said"), [
    (["--code", "p"], "these problems run programs that the model wrote"),
    (["--samples", "3"], "samples changes nothing without code"),
    (["--code", "p", "--data", "builtin"], "--code is measured by itself"),
    (["--code", "p", "--reward", "exact"], "--code is measured by itself"),
    (["--code", "p", "--allow_code_execution", "--k", "3"], "`k` has no valid value"),
    (["--code", "p", "--allow_code_execution", "--k", "x"], "`k` has no valid value"),
    (["--code", "p", "--allow_code_execution", "--samples", "3"], "several samples at temperature 0 are all the same")])
def test_what_is_refused(argv, said, capsys):
    assert main(["eval", "builtin", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_humaneval_164_of_164_and_0_of_164(shared_data, held):
    problems = read_problems(str(shared_data / "humaneval" / "HumanEval.jsonl.gz"))
    found = judge_programs(problems, [[p.solution, p.opening + "    pass\n"] for p in problems])
    assert [sum(several[i].passed for several in found) for i in (0, 1)] == [164, 0] and len(found) == 164
