"""How a run is watched: a live bar in a terminal, tens of plain lines anywhere else. The loop is handed an instance
and imports nothing from here."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import Any

import psutil
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

LINES = 30  # plain lines of a run, whatever its length
NOTES = 40  # plain notes (validations, checkpoints) before they are left to metrics.jsonl
WINDOW = 20  # updates over which speed and ETA are taken


def memory_text() -> str:
    """Memory in use now: of the GPU where one computes, else of this process, in GB."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return f"GPU {torch.cuda.max_memory_allocated() / 1e9:.1f} GB"
    return f"RAM {psutil.Process().memory_info().rss / 1e9:.1f} GB"


def duration(seconds: float) -> str:
    """1:02:03, 2:03 or 0:03."""
    whole = int(max(seconds, 0) + 0.5)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Progress:
    """A context manager; `update(metrics)` after every update, `note(text)` for anything else worth a line.

    `metrics` is one object of metrics.jsonl (seconds is the duration of the update). In a terminal one live bar; else
    at most LINES lines of updates and NOTES of notes (tests/app/test_progress.py::test_tens_of_lines_for_any_length).
    """

    def __init__(self, total: int, console: Console, start: int = 0, every: int = 1, live: bool | None = None):
        self.total, self.console, self.done, self.start = total, console, start, start
        self.live = console.is_terminal if live is None else live
        step = max(1, -(-(total - start) // LINES))
        self.every = -(-step // every) * every
        self.recent: deque[tuple[float, int]] = deque(maxlen=WINDOW)  # seconds and tokens of the last updates
        self.notes = 0
        self.began = time.perf_counter()
        self.bar: Bar | None = None

    def __enter__(self) -> Progress:
        if self.live:
            self.bar = Bar("[bold]{task.completed}/{task.total}", BarColumn(bar_width=24),
                           TextColumn("{task.fields[text]}"), console=self.console, refresh_per_second=4)
            self.task = self.bar.add_task("", total=self.total, completed=self.start, text="first update …")
            self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, metrics: dict[str, Any]) -> None:
        """Show one update."""
        self.done = metrics["step"]
        self.recent.append((metrics["seconds"], metrics["tokens"]))
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, text=self._text(metrics))
        elif self.done % self.every == 0 or self.done in (self.start + 1, self.total):
            self.console.print(f"update {self.done}/{self.total}  epoch {metrics['epoch']:.2f}  {self._text(metrics)}",
                               soft_wrap=True, markup=False, highlight=False)

    def note(self, text: str) -> None:
        """A line beside the bar, such as a validation or a checkpoint."""
        self.notes += 1
        if self.live or self.notes <= NOTES:
            self.console.print(text, soft_wrap=True, markup=False, highlight=False)
        elif self.notes == NOTES + 1:
            self.console.print("(further ones stand in metrics.jsonl)", soft_wrap=True, highlight=False)

    def _text(self, metrics: dict[str, Any]) -> str:
        seconds, tokens = (sum(column) for column in zip(*self.recent, strict=True))
        left = (self.total - self.done) * seconds / len(self.recent)
        loss = "no row to train" if metrics["loss"] is None else f"loss {metrics['loss']:.4f}"
        parts = [loss, f"{tokens / max(seconds, 1e-9):,.0f} tok/s", memory_text(),
                 f"{duration(time.perf_counter() - self.began)}, {duration(left)} left"]
        return "  ".join(parts)
