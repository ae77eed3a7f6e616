"""Asking a reward function, and trusting nothing that it returns."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

from ..core.errors import UserError
from .reward_child import place, plain_scores

TIMEOUT = 300.0  # seconds that one call may take
Score = Callable[[list[str], list[str], list[dict[str, Any]]], list[float]]


def ask_reward(score: Score, name: str, prompts: list[str], answers: list[str], rows: list[dict[str, Any]],
               timeout: float = TIMEOUT) -> list[float]:
    """score(prompts, answers, rows) -> one finite number per answer, or a UserError that says what went wrong.

    It runs in a thread of its own, so that one that hangs is told after `timeout` seconds; one that is a process
    (reward_process.py) is then killed. Each number is checked (test_scoring.py holds every message). A function that
    bounds its own time says so by an attribute `patience` (None: wait); of one that `abstains`, None is no verdict, and
    comes out as NaN.
    """
    timeout = getattr(score, "patience", timeout)
    done: dict[str, Any] = {}

    def call() -> None:
        try:
            done["scores"] = plain_scores(score(list(prompts), list(answers), [dict(row) for row in rows]))
        except BaseException as e:  # whatever it is, it is told with its place
            done["error"] = e

    thread = threading.Thread(target=call, name="reward", daemon=True)
    thread.start()
    thread.join(timeout)
    where = f"reward: {name}"
    if thread.is_alive():
        if hasattr(score, "end_process"):
            score.end_process()
        raise UserError("the reward function does not return", where=where,
                        found=f"no answer for {len(answers)} answers after {timeout:g} s",
                        fix="give its own calls a time limit, or score fewer answers at once with a smaller batch_size")
    if (error := done.get("error")) is not None:
        if isinstance(error, UserError):
            raise error
        raise failed(where, place(error), answers) from error
    return _checked(done["scores"], where, answers, getattr(score, "abstains", False))


def failed(where: str, found: str, answers: list[str]) -> UserError:
    """The error of a function that raised or whose process ended."""
    return UserError("the reward function failed", where=where, found=found,
                     fix="call it by hand on this answer: " + repr(answers[0])[:200])


def no_list(where: str, kind: str, answers: list[str]) -> UserError:
    """The error of a function that returned something of this type, no list."""
    return UserError("the reward function returned no list", where=where, found=kind,
                     expected=f"a list of {len(answers)} numbers")


def _checked(scores: Any, where: str, answers: list[str], abstains: bool) -> list[float]:
    if isinstance(scores, str):
        raise no_list(where, scores, answers)
    if len(scores) != len(answers):
        raise UserError("the reward function returned a wrong count of numbers", where=where, found=str(len(scores)),
                        expected=f"{len(answers)}, one per answer")
    for score, answer in zip(scores, answers, strict=True):
        if score is None and abstains:
            continue
        if not isinstance(score, float) or not math.isfinite(score):
            raise UserError("the reward function returned something that is no finite number", where=where,
                            found=f"{score!r} for the answer {answer[:200]!r}", expected="a number")
    return [math.nan if s is None else s for s in scores]
