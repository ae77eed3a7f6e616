"""The process that a reward function lives in: it loads the function, then scores what it is asked. Stdlib only.

Run as a file by reward_process.py, one line of JSON each way on a pipe of our own; it ends when the pipe closes.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

SET_PDEATHSIG = 1


class NoNumber:
    """Something among the scores that float() does not take: how it looks."""

    def __init__(self, shown: str):
        self.shown = shown

    def __repr__(self) -> str:
        return self.shown


def plain_scores(made: Any) -> list[float | None | NoNumber] | str:
    """A list, tuple, array or tensor of N -> N numbers, None where None stands; of anything else its type's name.

    Numbers are what float() takes, text aside, finite or not.
    """
    made = made.tolist() if hasattr(made, "tolist") else made
    return [_number(score) for score in made] if isinstance(made, list | tuple) else type(made).__name__


def _number(score: Any) -> float | None | NoNumber:
    if score is None or isinstance(score, NoNumber):
        return score
    if not isinstance(score, str | bytes | bytearray):
        try:
            return float(score)
        except (TypeError, ValueError, ArithmeticError, RuntimeError):
            pass  # told with its place among the answers
    try:
        return NoNumber(repr(score)[:200])
    except ValueError:  # Python writes out no number of more than 4,300 digits
        return NoNumber(f"{type(score).__name__} too long to show")


def read_scores(told: dict[str, Any]) -> Any:
    """The object_hook for what `_tell` wrote."""
    return NoNumber(told["shown"]) if told.keys() == {"shown"} else told


def place(error: BaseException, file: str = "") -> str:
    """What an exception says and in which line it arose: the innermost of `file`, if it passed through that."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    frames = [frame for frame in frames if frame.filename == file] or frames
    at = f", in {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{at}"


def main() -> None:
    _stand_alone()
    told, pipe = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="ascii")
    # what the function prints or reads must not land between the messages
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)

    def tell(message: dict[str, Any]) -> None:
        pipe.write(json.dumps(message, default=lambda x: {"shown": x.shown}) + "\n")
        pipe.flush()

    order = json.loads(told.readline() or "null")
    if order is None:
        return
    try:
        function, there = _load(order)
        facts = _facts(function) if function is not None else {"there": there}
    except BaseException as e:  # a user's file: whatever it raises is told
        tell({"failed": f"{type(e).__name__}: {e}"})
        return
    tell(facts)
    for line in told:
        tell(_score(function, json.loads(line), os.path.abspath(order.get("file", ""))))


def _stand_alone() -> None:
    """End with the parent and not before it: a signal to all processes of a run is the parent's to answer."""
    if sys.platform == "linux":  # a function that never returns would not see the pipe close
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which programs that the function starts would inherit
    os.register_at_fork(after_in_child=lambda: [signal.signal(number, signal.SIG_DFL) for number in numbers])


def _load(order: dict[str, Any]) -> tuple[Callable | None, list[str]]:
    """The function, or None and the names of those that the file has."""
    sys.path[:] = order["path"]
    if "module" in order:
        return getattr(importlib.import_module(order["module"]), order["name"])(order["argument"]), []
    path = Path(order["file"])
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(f"posttrain_reward_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, order["name"], None)
    there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
    return (function if callable(function) else None), there


def _facts(function: Callable) -> dict[str, Any]:
    facts: dict[str, Any] = {"abstains": bool(getattr(function, "abstains", False))}
    if hasattr(function, "patience"):
        facts["patience"] = None if function.patience is None else float(function.patience)
    return facts


def _score(function: Callable, asked: list, file: str) -> dict[str, Any]:
    try:
        return {"scores": plain_scores(function(*asked))}
    except BaseException as e:  # whatever it is, it is told with its place
        errors = sys.modules.get("posttrain.core.errors")
        if errors and isinstance(e, errors.UserError):
            return {"error": {n: getattr(e, n) for n in ("message", "where", "found", "expected", "fix")}}
        return {"failed": place(e, file)}


if __name__ == "__main__":
    main()
