"""Clocks, memory and the lock of the benchmarks; standard library only, so that every contestant can import it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SKIPPED_UPDATES = 2  # the first ones warm up allocators and kernels; the rest is the steady state
MIB = 2**20


def status_bytes(field: str, pid: int | str = "self") -> int:
    """VmRSS (now) or VmHWM (peak) of a process, in bytes; 0 if gone. (A child's ru_maxrss holds its parent's.)"""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    return 0


class Watch:
    """What a contestant reports: tokens/s over its steady state, losses, memory above the start, first update."""

    def __init__(self) -> None:
        self.started = float(os.environ.get("BENCH_STARTED", time.time()))
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.held = self.worker = 0

    def loading(self) -> None:
        """Call after the imports, before a model or a row is read."""
        self.held = status_bytes("VmRSS")

    def update_done(self) -> None:
        self.ends.append(time.time())

    def report(self, tokens: list[int], path: str, **more) -> None:
        """tokens: real tokens of each update, padding never counted."""
        n = min(len(self.ends), len(tokens))
        steady = sum(tokens[SKIPPED_UPDATES:n]) / (self.ends[n - 1] - self.ends[SKIPPED_UPDATES - 1])
        Path(path).write_text(json.dumps({
            "tokens_per_second": steady, "updates": n, "losses": self.losses,
            "first_update_s": self.ends[0] - self.started, "total_s": self.ends[n - 1] - self.started,
            "held_mib": self.held / MIB, "peak_mib": (status_bytes("VmHWM") - self.held) / MIB,
            "worker_mib": self.worker / MIB} | more))


def as_posttrain() -> dict[str, str]:
    """The environment of a process that `posttrain` started: its heap (core/process.py), this checkout, no network."""
    from posttrain.core.process import NO_CACHES

    root = str(Path(__file__).resolve().parent.parent)
    return os.environ | {"GLIBC_TUNABLES": NO_CACHES, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"}


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the machine-wide lock: no two benchmarks run at once."""
    with open(Path(tempfile.gettempdir()) / "posttrain-bench.lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("waiting for another benchmark to end …", flush=True)
            fcntl.flock(f, fcntl.LOCK_EX)
        yield


def machine() -> dict:
    """Where and when: what a figure needs beside it."""
    model = next((ln.split(":", 1)[1].strip() for ln in Path("/proc/cpuinfo").read_text().splitlines()
                  if ln.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(),
            "load_before": os.getloadavg()[0], "date": time.strftime("%Y-%m-%d")}


def median(values: list[float]) -> float:
    return statistics.median(values)


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
