"""A reward function in a process of its own, so that its time limit holds whatever the function does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.process import killer
from .reward_child import read_scores
from .scoring import failed, no_list

CHILD = Path(__file__).with_name("reward_child.py")


class FunctionProcess:
    """score(prompts, answers, rows) in a process that is started once: what it keeps between calls stays.

    A thread cannot end code that holds Python's lock, as one search of a regular expression does; a process can be
    killed (test_reward_process.py::test_one_that_holds_the_lock). Rows reach it as JSON, and what JSON has no form for
    (a date) as text. `opened` is what loading came to: `failed`, `there` (the file's functions, where the one asked is
    not among them), or the function's `abstains` and `patience`.
    """

    def __init__(self, reward: str, **order: str):
        self.where = f"reward: {reward}"
        # a group of its own: Ctrl-C in a terminal reaches only the parent, and what the function starts ends with it
        self._process = subprocess.Popen([sys.executable, "-P", str(CHILD)], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, process_group=0)
        weakref.finalize(self, _close, self._process)
        self.opened = self._ask({**order, "path": sys.path})
        self.abstains = self.opened.get("abstains", False)
        if "patience" in self.opened:
            self.patience = self.opened["patience"]

    def __call__(self, prompts: list[str], answers: list[str], rows: list[dict[str, Any]]) -> list:
        told = self._ask([prompts, answers, rows])
        if "error" in told:
            raise UserError(**told["error"])
        if "failed" in told:
            raise failed(self.where, told["failed"], answers)
        if isinstance(told["scores"], str):
            raise no_list(self.where, told["scores"], answers)
        return told["scores"]

    def end_process(self) -> None:
        """Kill it, whatever it is doing."""
        _kill(self._process)

    def _ask(self, asked: Any) -> dict[str, Any]:
        """One line out, one line in; `failed` says how the process ended, where it did."""
        with contextlib.suppress(OSError):  # a process that has ended is told by its empty answer
            self._process.stdin.write(json.dumps(asked, default=str).encode() + b"\n")
            self._process.stdin.flush()
        line = b""
        while not line.endswith(b"\n"):
            if not (part := os.read(self._process.stdout.fileno(), 1 << 20)):
                return {"failed": self._death()}
            line += part
        return json.loads(line, object_hook=read_scores)

    def _death(self) -> str:
        _kill(self._process)
        code = self._process.returncode
        if code >= 0:
            return f"its process ended with exit status {code}"
        return f"its process was killed: {killer(-code)}"


def _kill(process: subprocess.Popen) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _close(process: subprocess.Popen) -> None:
    """Close the pipe, which ends the process, and collect it; runs at the latest when the interpreter exits."""
    with contextlib.suppress(OSError):
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    _kill(process)
    process.stdout.close()
