"""Under what a run computes: versions, layout, data. Each checkpoint holds it, and a resume shows what differs."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..core import ranks
from ..core.errors import UserError

PACKAGES = ("torch", "transformers", "peft", "tokenizers")
_ROOT = Path(__file__).resolve().parents[1]

Conditions = dict[str, dict[str, Any]]


def code_versions(four_bit: bool = False) -> dict[str, str]:
    """The version of everything whose code decides about the numbers; ours with a checksum of its source."""
    packages = (*PACKAGES, "bitsandbytes") if four_bit else PACKAGES
    return {"posttrain": f"{__version__}, source {_source()}"} | {name: version(name) for name in packages}


@cache
def _source() -> str:
    """The first 12 digits of the SHA-256 of this package's Python files, by name and content."""
    total = hashlib.sha256()
    for path in sorted(_ROOT.rglob("*.py")):
        total.update(f"{path.relative_to(_ROOT)}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:12]


def layout_of(pack_tokens: int, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What does not change the mathematics but the order of its sums: packs, processes, threads, types, chips."""
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else (
        f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}")
    threads = {"threads": torch.get_num_threads()} if device.type == "cpu" else {}
    return {"pack_tokens": pack_tokens, "processes": ranks.world(), **threads,
            "dtype": str(dtype).removeprefix("torch."), "processor": processor}


def data_files(files: list[dict[str, Any]]) -> dict[str, str]:
    """{path: SHA-256 and rows} of the data files."""
    return {f["path"]: f"{f['rows']:,} rows, sha256 {f['sha256']}" for f in files}


WHAT = {"data": "the data changed since the checkpoint", "code": "the code changed since the checkpoint",
        "layout": "the layout changed since the checkpoint: equal to rounding, not to the bit"}
BACK = {"data": "put the old file back", "code": "install that version again", "layout": "set it as it was"}


def differences(before: Conditions, now: Conditions) -> list[UserError]:
    """One error per file, package or key of the layout that is not as it was."""
    found = []
    for part in WHAT:
        for name in before[part] | now[part]:
            old, new = before[part].get(name), now[part].get(name)
            if old != new:
                found.append(UserError(WHAT[part], where=name, found="absent" if new is None else str(new),
                                       expected="absent" if old is None else str(old),
                                       fix=f"{BACK[part]}, or go on all the same with allow_changes"))
    return found
