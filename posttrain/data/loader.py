"""The training loop's end of the data: batches of update n, made ahead by a worker process. No torch here."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..core.errors import UserError
from ..core.process import killer, with_caches
from .batch import Batch, HeldRows, Opened
from .judge import Head, check_lost

_ROOT = Path(__file__).resolve().parents[2]


class Loader:
    """Opens the data in a worker process at once; everything else waits for it only where its answer is needed.

        with Loader(settings) as loader:      # indexing starts
            loader.tokenizer(spec)            # rendering of the first rows starts
            head = loader.judge()             # UserError where too many rows would be lost
            for batch in loader.batches(start=0):
                ...

    A worker's UserError is raised here, at the point of the order where it arose; its death is a UserError too
    (test_loader.py::test_a_killed_worker_is_one_clear_error).
    """

    def __init__(self, settings: Any, spec: Any = None):
        self.settings = SimpleNamespace(**settings.model_dump())
        self._process = _start_worker()
        self.close = weakref.finalize(self, _end, self._process)
        self._waiting: dict[str, deque] = {name: deque() for name in ("opened", "head", "batch", "held_rows", "files")}
        self._opened: Opened | None = None
        self._head: Head | None = None
        self._files: list[dict[str, Any]] | None = None
        self._hashing = False
        self._error: UserError | None = None
        self._run = 0
        self._send("settings", self.settings)
        if spec is not None:
            self.tokenizer(spec)

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def tokenizer(self, spec: Any) -> None:
        """Give the worker its tokenizer (a TokenizerSpec); it begins to render the first rows."""
        self._send("tokenizer", spec)

    @property
    def opened(self) -> Opened:
        """Sources and totals; waits until the files are indexed."""
        if self._opened is None:
            self._opened = self._receive("opened")
        return self._opened

    @property
    def total(self) -> int:
        """Updates of the whole run."""
        return self.opened.total

    @property
    def updates_per_epoch(self) -> int:
        return self.opened.updates_per_epoch

    def head(self) -> Head:
        """What the first 4,000 rows in training order became; waits until they are rendered."""
        if self._head is None:
            self._head = self._receive("head")
        return self._head

    def judge(self) -> Head:
        """The head, or a UserError if more than `max_lost` of it is dropped; to be called before the first update."""
        head = self.head()
        check_lost(head.ledger, self.settings, head)
        return head

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Batches of the updates after the first `start`, to the end of the run; every `start` costs the same."""
        self._run += 1
        run, left = self._run, self.total - start
        self._send("batches", (run, start))
        while left > 0:
            of, batch = self._receive("batch")
            if of == run:  # else it was rendered ahead for an earlier call
                left -= 1
                yield batch

    def held_rows(self) -> HeldRows:
        """Rows of eval_data, or those that eval_split held out, as sequences; not in the run's ledger."""
        self._send("held_rows", None)
        return self._receive("held_rows")

    def begin_files(self) -> None:
        """Let the worker read every file once more for its SHA-256, beside its other work; `files` waits for them."""
        if not self._hashing:
            self._hashing = True
            self._send("files", None)

    def files(self) -> list[dict[str, Any]]:
        """Path, rows and SHA-256 of every data file, as they were when the files were indexed."""
        if self._files is None:
            self.begin_files()
            self._files = self._receive("files")
        return self._files

    def _send(self, name: str, value: Any) -> None:
        if self._error:
            return  # the answer will be that error
        try:
            pickle.dump((name, value), self._process.stdin, protocol=pickle.HIGHEST_PROTOCOL)
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            pass  # reading tells why, after what was answered before

    def _receive(self, name: str) -> Any:
        """The next answer of this name; answers of other names wait for who asked them."""
        while not self._waiting[name]:
            if self._error:
                raise self._error
            try:
                kind, value = pickle.load(self._process.stdout)
            except (EOFError, pickle.UnpicklingError, ValueError):
                kind, value = "error", self._death()
            if kind == "error":
                self._error = value
            else:
                self._waiting[kind].append(value)
        return self._waiting[name].popleft()

    def _death(self) -> UserError:
        if not self.close.alive:
            return UserError("the data loader is closed")
        code = self._process.wait()
        if code >= 0:
            return UserError("the data worker stopped", found=f"exit status {code}",
                             fix="this is a bug: please report the traceback it printed above")
        return UserError("the data worker was killed", found=killer(-code),
                         fix="start again with resume: the last checkpoint is good")


def _start_worker() -> subprocess.Popen:
    """A process of its own group, so that Ctrl-C in a terminal reaches only the parent."""
    path = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**with_caches(dict(os.environ)), "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "true",
           "OPENBLAS_NUM_THREADS": "1"}  # numpy only moves bytes there; its pool of threads would cost memory
    return subprocess.Popen([sys.executable, "-P", "-m", "posttrain.data.worker"], stdin=subprocess.PIPE,
                            stdout=subprocess.PIPE, env=env, process_group=0)


def _end(process: subprocess.Popen) -> None:
    """Close the pipe, which ends the worker, and collect it; runs at the latest when the interpreter exits."""
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
