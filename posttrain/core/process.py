"""How the process waits and takes memory, settled before torch is imported; what the user has set stays."""

from __future__ import annotations

import os
import signal
import sys

# Glibc's caches of small freed blocks, one for each thread; what lies in them never joins the free space beside it.
NO_CACHES = "glibc.malloc.tcache_count=0"


def settle_process() -> None:
    """Let OpenMP threads give up the processor after about a microsecond of waiting; take large tensors in large pages.

    By default threads spin for milliseconds, so one other busy process costs a factor of ten, not of two; with this a
    quiet machine is as fast, and a busy one five times as fast. Pages of 2 MiB where Linux gives them on request save
    a sixth of the page faults' time (both: docs/performance.md). Only before torch is loaded.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def restart_without_caches() -> None:
    """Begin this command again, as the same process, with a heap that keeps no caches of small blocks.

    Torch asks for aligned blocks; glibc cuts each out of a larger one, and the cuttings in those caches keep freed
    tensors apart: a run on CPU then holds up to half as much again (docs/memory.md). Glibc reads this variable only
    when a process begins. What cannot begin again (another C library, a forbidden exec) goes on as it is.
    """
    try:
        if "glibc" not in os.confstr("CS_GNU_LIBC_VERSION") or "tcache" in os.environ.get("GLIBC_TUNABLES", ""):
            return
        os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, [os.environ.get("GLIBC_TUNABLES"), NO_CACHES]))
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, sys.orig_argv)
    except (AttributeError, ValueError, TypeError, OSError):
        return


def with_caches(environment: dict[str, str]) -> dict[str, str]:
    """The environment for a process that holds no tensors: many threads and small blocks want those caches."""
    kept = [t for t in environment.get("GLIBC_TUNABLES", "").split(":") if t and t != NO_CACHES]
    rest = {k: v for k, v in environment.items() if k != "GLIBC_TUNABLES"}
    return rest | ({"GLIBC_TUNABLES": ":".join(kept)} if kept else {})


def killer(number: int) -> str:
    """The signal that ended a process, and who sends it where nobody did."""
    memory = " (the system does that when memory runs out)" if number == signal.SIGKILL else ""
    return f"{signal.Signals(number).name}{memory}"
