"""What memory this process holds, what it held at most, and what it could still get."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

STATUS, PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
GROUP = Path("/sys/fs/cgroup")
LIMITS = {"memory.max": "memory.current",  # a container's own limit, and what it uses, in the second and first version
          "memory/memory.limit_in_bytes": "memory/memory.usage_in_bytes"}
_mapping = False  # whether large blocks are mapped apart in this process


@dataclass(frozen=True, slots=True)
class Memory:
    """A device's memory, counted from what was held when this was made.

    On CUDA what torch allocated; on CPU the resident memory of the process.
    """

    device: torch.device
    held: int

    @classmethod
    def begin(cls, device: torch.device) -> Memory:
        """Count from here: a peak of the past is forgotten where the system can do that."""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return cls(device, torch.cuda.memory_allocated(device))
        forget_peak()
        return cls(device, psutil.Process().memory_info().rss)

    def now(self) -> int:
        """Bytes held now above what was held at `begin`."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device) - self.held
        return max(0, psutil.Process().memory_info().rss - self.held)

    def peak(self) -> int:
        """Bytes held at most since `begin`, above what was held then."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.held
        return max(0, highest() - self.held)


def forget_peak() -> None:
    """Count the most that this process holds from now on, where the system can do that."""
    with contextlib.suppress(OSError):
        PEAK.write_text("5")


def give_back() -> None:
    """Return to the system what glibc's heap holds free; after loading and rehearsing that is gigabytes at 0.6B."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
            ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Meanwhile glibc maps blocks of a MiB and more each on its own, and unmaps them when they are freed.

    Weights that are read, turned into others and let go leave its heap full of holes otherwise: 0.8 GB when 0.6B is
    packed in four bits. Afterwards blocks go where they went before: to the heap, or, in a run that maps them, apart.
    """
    before = _mapping
    map_large_blocks(True)
    try:
        yield
    finally:
        map_large_blocks(before)


def map_large_blocks(wanted: bool) -> None:
    """Whether glibc maps each block of a MiB and more on its own from here on: no holes, but time to clear its pages.

    A run on four bits that recomputes activations does so on CPU: layers are unpacked between them, and at 0.6B a
    quarter of its peak were holes; it takes a quarter more time (docs/memory.md). Otherwise they go to the heap, as
    glibc has it in a process that has run for a while.
    """
    global _mapping
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt and wanted != _mapping:
        mallopt(M_MMAP_THRESHOLD, 1 << 20 if wanted else 32 << 20)
        if not wanted:
            mallopt(M_TRIM_THRESHOLD, 64 << 20)
        _mapping = wanted


def highest() -> int:
    """Bytes that this process held at most, since a peak was last forgotten."""
    if STATUS.is_file():
        line = next(ln for ln in STATUS.read_text().splitlines() if ln.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def available(device: torch.device) -> int:
    """Bytes that a new process could take on this device, a container's limit counted."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    for limit, used in LIMITS.items():
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            free = min(free, int((GROUP / limit).read_text()) - int((GROUP / used).read_text()))
    return max(0, free)


def installed(device: torch.device) -> int:
    """Bytes of memory that this device has in all, a container's limit counted."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    most = psutil.virtual_memory().total
    for limit in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            most = min(most, int((GROUP / limit).read_text()))
    return most


def size(bytes_: float) -> str:
    """Bytes for people: 13.2 GB, 842 MB, 1.7 MB."""
    if bytes_ >= 1e9:
        return f"{bytes_ / 1e9:.1f} GB"
    return f"{bytes_ / 1e6:.{0 if bytes_ >= 1e7 else 1}f} MB"
