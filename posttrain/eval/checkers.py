"""Named checkers: rewards that need no model. Each is score(prompts, answers, rows) -> one number per answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ..core.errors import UserError

Rows = list[dict[str, Any]]
Score = Callable[[list[str], list[str], Rows], list[float]]

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
NAMED = {"exact": "the row's own answer, to the letter", "gsm8k": "the last number equals that of the row's answer",
         "regex:PATTERN": "the pattern is found in the answer",
         "length:N": "1 at N characters, 0 at none or at twice that",
         "tests": "the program passes the row's tests, in the sandbox",
         "judge:URL#MODEL": "the rating of a model at an OpenAI-compatible endpoint"}


def named_checker(spec: str) -> Score | None:
    """The checker that `--reward` names and that needs nothing but the rows, or None."""
    name, colon, argument = spec.partition(":")
    if name in ("exact", "gsm8k") and not colon:
        return {"exact": exact, "gsm8k": gsm8k}[name]
    if name == "regex":
        try:
            pattern = re.compile(argument)
        except re.error as e:
            raise UserError("the reward's pattern is no regular expression", where="reward", found=f"{argument!r}: {e}",
                            expected=r"for example regex:\d+$") from None
        if not argument:
            raise UserError("the reward's pattern is empty", where="reward", found=spec, expected=r"regex:\d+$, say")
        return lambda prompts, answers, rows: [float(pattern.search(a) is not None) for a in answers]
    if name == "length":
        if not argument.isdigit() or not int(argument):
            raise UserError("the reward does not say which length", where="reward", found=spec,
                            expected="length:80, say")
        wanted = int(argument)
        return lambda prompts, answers, rows: [max(0.0, 1 - abs(len(a) - wanted) / wanted) for a in answers]
    return None


def exact(prompts: list[str], answers: list[str], rows: Rows) -> list[float]:
    """1 where the answer is the row's own, surrounding space aside."""
    return [float(a.strip() == _expected(row).strip()) for a, row in zip(answers, rows, strict=True)]


def gsm8k(prompts: list[str], answers: list[str], rows: Rows) -> list[float]:
    """1 where the answer's last number is that of the row's, which may stand after `####` (Cobbe et al. 2021)."""
    found = []
    for answer, row in zip(answers, rows, strict=True):
        wanted = last_number(_expected(row))
        if wanted is None:
            raise UserError("a row's answer holds no number to compare with", where="reward: gsm8k",
                            found=_expected(row)[:80], fix="use exact, or rows whose answer ends in a number")
        found.append(float(last_number(answer) == wanted))
    return found


def last_number(text: str) -> float | None:
    """The last number of a text, thousands separated by commas or not; after `####` where that stands."""
    numbers = NUMBER.findall(text.rpartition("####")[2])
    return float(numbers[-1].replace(",", "")) if numbers else None


def _expected(row: dict[str, Any]) -> str:
    answer = row.get("answer")
    if not isinstance(answer, str) or not answer.strip():
        raise UserError("a row has no answer to compare with", where="reward", found=", ".join(row) or "an empty row",
                        expected="an answer in the row, such as the column `answer`",
                        fix="name its column with columns: response=…, or use another reward")
    return answer
