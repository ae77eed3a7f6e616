"""Programs of a model, run against tests where the kernel holds them: they reach neither the machine nor the verdict.

The program and its tests run in two sandboxes, each a process of sandbox_launcher.py in namespaces of its own (user,
processes, network, mounts, IPC), as nobody, without capabilities, under a filter of system calls and resource limits,
on a read-only root that holds Python, the system's libraries and an empty /tmp in memory. They talk through two pipes
in plain data; the verdict is the exit status of the tests' side, which the program can neither see nor signal
(test_sandbox.py tries).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import UserError

LAUNCHER = Path(__file__).with_name("sandbox_launcher.py")
MISSING = 97  # the launcher's exit status for a lock that the machine does not offer
GRACE = 10.0  # seconds after the wall clock's limit until the launcher itself is killed


@dataclass(frozen=True, slots=True)
class Limits:
    """Of each of the two sandboxes: processes (threads count), bytes, seconds of wall clock and of CPU."""

    processes: int = 12
    memory: int = 512 << 20
    file_size: int = 16 << 20
    disk_megabytes: int = 64
    cpu_seconds: int = 10
    seconds: float = 30.0


@dataclass(frozen=True, slots=True)
class Trial:
    """A program and what judges it: `names` of its functions that the tests call, `before` what the tests define."""

    program: str
    test: str
    names: tuple[str, ...]
    before: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether every test passed, and if not what the tests' side said."""

    passed: bool
    why: str = ""


def run(trial: Trial, limits: Limits | None = None) -> Verdict:
    """Judge one program; UserError where the machine lacks a lock."""
    limits = limits or Limits()
    job = json.dumps({"before": trial.before, "test": trial.test, "names": trial.names})
    to_tests, to_program = os.pipe(), os.pipe()
    started: list[subprocess.Popen] = []
    try:
        try:
            started.append(_start("candidate", (to_program[0], to_tests[1]), trial.program, limits))
            started.append(_start("tests", (to_tests[0], to_program[1]), job, limits))
        finally:
            for number in (*to_tests, *to_program):
                os.close(number)
        _wait(started[1], limits.seconds + GRACE)
        said = _said(started[1])
        for process in started:
            if process.poll() == MISSING:
                raise _no_lock(said or _said(process))
        passed = started[1].returncode == 0
        return Verdict(passed, "" if passed else said or "out of time or of memory")
    finally:
        for process in started:
            process.terminate()  # it kills the init of its namespace, and waits until the namespace is empty
            _wait(process, GRACE)
            process.stderr.close()


def run_all(trials: Iterable[Trial], limits: Limits | None = None, at_once: int | None = None) -> list[Verdict]:
    """Verdicts in order, several at a time (default: half the processors, for each trial is two processes)."""
    with ThreadPoolExecutor(at_once or max(1, (os.cpu_count() or 2) // 2)) as pool:
        return list(pool.map(lambda trial: run(trial, limits), trials))


def check() -> None:
    """Stop with the name of the missing lock before any program of a model is run."""
    if not run(Trial("def f(x):\n    return x + 1", "assert f(1) == 2", ("f",))).passed:
        raise _no_lock("the trial program did not pass")


def _start(role: str, fds: tuple[int, int], source: str, limits: Limits) -> subprocess.Popen:
    order = {"role": role, "fds": fds, "limits": asdict(limits)}
    process = subprocess.Popen([sys.executable, "-I", "-S", "-B", str(LAUNCHER), json.dumps(order)], env={}, cwd="/",
                               stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, pass_fds=fds,
                               start_new_session=True)
    with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # broken: it has ended, and its status says why
        pipe.write(source.encode("utf-8", "replace"))
    return process


def _wait(process: subprocess.Popen, seconds: float) -> None:
    """Wait until a launcher ends; one that does not is killed, and the init of its namespace dies with it."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _said(process: subprocess.Popen) -> str:
    """The beginning of what a launcher said."""
    os.set_blocking(process.stderr.fileno(), False)
    return (process.stderr.read(500) or b"").decode("utf-8", "replace")


def _no_lock(what: str) -> UserError:
    return UserError("programs cannot be held here, so none is run", where="--allow_code_execution", found=what.strip(),
                     expected="Linux on x86_64 with unprivileged user namespaces and seccomp",
                     fix="run it on such a machine (in a container, allow user namespaces), or leave code out")
