"""How the process waits and takes memory, settled before torch is imported; what the user has set stays."""

from __future__ import annotations

import os


def settle_process() -> None:
    """Let OpenMP threads give up the processor after about a microsecond of waiting; take large tensors in large pages.

    By default threads spin for milliseconds, so one other busy process costs a factor of ten, not of two; with this a
    quiet machine is as fast, and a busy one five times as fast. Pages of 2 MiB where Linux gives them on request save
    a sixth of the page faults' time (both: docs/performance.md). Only before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
