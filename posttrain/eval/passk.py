"""Code problems: read them, ask for programs, judge these in the sandbox, and pass@k."""

from __future__ import annotations

import ast
import builtins
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.errors import UserError
from ..data.read import open_source
from .intervals import Tally, ratio
from .sandbox import Limits, Trial, Verdict, run_all

_FENCE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.S | re.I)
FORMS = "prompt, test, entry_point (HumanEval), or text or prompt, test_list (MBPP)"


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem: what is asked, what the program begins with, and what judges it.

    `opening` is code that every program begins with (HumanEval's prompt: imports, other functions, the stub);
    `solution` is the data's own, where it has one.
    """

    name: str
    asked: str
    opening: str
    test: str
    names: tuple[str, ...]
    before: str
    solution: str | None = None

    def program(self, answer: str) -> str:
        """What an answer means: its fenced block, or all of it; a body without `def` goes on after the stub."""
        found = _FENCE.search(answer)
        code = (found[1] if found else answer).replace("\r\n", "\n")
        if not self.opening or any(re.search(rf"^def\s+{re.escape(n)}\b", code, re.M) for n in self.names):
            return f"{self.opening}    pass\n\n\n{code}" if self.opening else code
        return self.opening + code

    def trial(self, program: str) -> Trial:
        return Trial(program, self.test, self.names, self.before)


def read_problems(path: str, limit: int | None = None) -> list[Problem]:
    """Problems of a file in the form of HumanEval or MBPP; another row is a UserError with its line."""
    source = open_source(path)
    problems = []
    for i in range(len(source) if limit is None else min(limit, len(source))):
        raw = source[i]
        problems.append(problem_of(raw.values, raw.origin))
    return problems


def problem_of(values: dict[str, Any], where: str) -> Problem:
    """A row in the form of HumanEval or MBPP; another one is a UserError."""
    if all(isinstance(values.get(k), str) for k in ("prompt", "test", "entry_point")):
        return _humaneval(values, where)
    if isinstance(values.get("test_list"), list) and isinstance(values.get("text", values.get("prompt")), str):
        return _mbpp(values, where)
    raise UserError("a row is no code problem", where=where, found=", ".join(values), expected=FORMS)


def _humaneval(values: dict[str, Any], origin: str) -> Problem:
    prompt, entry = values["prompt"], values["entry_point"]
    asked = ("Complete this Python function. Answer with the whole function in one ```python block.\n\n"
             f"```python\n{prompt.rstrip()}\n```")
    solution = values.get("canonical_solution")
    return Problem(str(values.get("task_id", origin)), asked, prompt, f"{values['test']}\n\ncheck({entry})\n", (entry,),
                   prompt, None if solution is None else prompt + solution)


def _mbpp(values: dict[str, Any], origin: str) -> Problem:
    before = "\n".join([values.get("test_setup_code") or "", *(values.get("test_imports") or [])]).replace("\r\n", "\n")
    tests = [t.replace("\r\n", "\n") for t in values["test_list"]]
    asked = (f"{values.get('text', values.get('prompt'))}\nAnswer with the program in one ```python block. It must "
             "pass:\n\n```python\n" + "\n".join(tests) + "\n```")
    solution = (values.get("code") or "").replace("\r\n", "\n")
    imports, own = _top(solution)
    return Problem(str(values.get("task_id", origin)), asked, "", "\n".join(tests), _called(tests, own),
                   "\n".join([before, *imports]), solution or None)


def _top(solution: str) -> tuple[list[str], set[str]]:
    """Imports of the data's own solution, which its tests may use too, and the functions that it defines."""
    try:
        body = ast.parse(solution).body
    except SyntaxError:
        return [], set()
    return ([ast.unparse(n) for n in body if isinstance(n, ast.Import | ast.ImportFrom)],
            {n.name for n in body if isinstance(n, ast.FunctionDef)})


def _called(tests: list[str], own: set[str]) -> tuple[str, ...]:
    """Names that the tests call, in order: those the data's solution defines, and others that Python does not have."""
    names: dict[str, None] = {}
    for test in tests:
        try:
            nodes = list(ast.walk(ast.parse(test)))
        except SyntaxError:
            continue
        names |= dict.fromkeys(n.func.id for n in nodes if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
                               and (n.func.id in own or not hasattr(builtins, n.func.id)))
    return tuple(names)


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """The chance that one of k programs drawn from the samples is right, without bias (Chen et al. 2021, eq. 1).

        pass@k = 1 − C(n−c, k) / C(n, k)
    """
    assert 0 <= correct <= samples and 1 <= k <= samples
    return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)


def judge_programs(problems: list[Problem], programs: list[list[str]], limits: Limits | None = None,
                   run: Callable[..., list[Verdict]] = run_all) -> list[list[Verdict]]:
    """Verdicts of every problem's programs."""
    trials = [p.trial(program) for p, several in zip(problems, programs, strict=True) for program in several]
    verdicts = iter(run(trials, limits))
    return [[next(verdicts) for _ in several] for several in programs]


def tallies(verdicts: list[list[Verdict]], ks: list[int]) -> dict[str, Tally]:
    """pass@k for each k: the mean over problems."""
    counts = [(len(several), sum(v.passed for v in several)) for several in verdicts]
    return {f"pass@{k}": ratio(np.array([pass_at_k(n, c, k) for n, c in counts])) for k in ks}
