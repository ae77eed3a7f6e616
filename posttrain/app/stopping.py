"""SIGINT and SIGTERM in a run: the first one lets the update end, and outside the updates each stops at once."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Terminated(KeyboardInterrupt):
    """SIGTERM where SIGINT would be a KeyboardInterrupt: whatever handles the one handles the other."""

    code = 128 + signal.SIGTERM


def stop_now(number: int, frame: Any) -> None:
    """The handler that ends what is going on, with every clean-up on the way."""
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def end_with_launcher() -> None:
    """Let the system kill this process once the launcher of `--processes` is gone, however it went; on Linux.

    torchrun runs in the launcher itself, so that it is the parent.
    """
    launcher = os.environ.get("POSTTRAIN_LAUNCHER", "")
    if launcher in ("", str(os.getpid())) or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(launcher):  # it went before the system knew
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGINT and SIGTERM go to `handler`; in the main thread only, elsewhere Python cannot."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, was in old.items():
            signal.signal(number, was)
