"""How threads wait for each other, settled before torch is imported."""

from __future__ import annotations

import os


def yield_soon() -> None:
    """Let OpenMP threads give up the processor after about a microsecond of waiting, where the user has not decided.

    By default they spin for milliseconds, so one other busy process costs a factor of ten, not of two; with this a
    quiet machine is as fast, and a busy one five times as fast (docs/performance.md). Only before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
