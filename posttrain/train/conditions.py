"""Under what a run computes: versions, layout, data. Each checkpoint holds it, and a resume shows what differs."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..core import ranks
from ..core.changes import FIXED, key_changed, key_note
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
    """The first 12 digits of the SHA-256 of this package's Python files and templates, by name and content."""
    total = hashlib.sha256()
    for path in sorted(p for kind in ("*.py", "*.jinja") for p in _ROOT.rglob(kind)):
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
        "inputs": "what this key names changed since the checkpoint",
        "layout": "the layout changed since the checkpoint: equal to rounding, not to the bit"}
BACK = {"data": "put the old file back", "code": "install that version again", "inputs": "put it back as it was",
        "layout": "set it as it was"}


@dataclass(frozen=True, slots=True)
class Change:
    """What is not as it was: a key, a file, a package, an input or a part of the layout; None is absent."""

    part: str
    name: str
    before: Any
    now: Any

    @property
    def fixed(self) -> bool:
        """Whether the checkpoint's tensors depend on it, so that nothing allows the change."""
        return self.name == "model_config" or (self.part == "settings" and self.name in FIXED)

    def error(self, source: str) -> UserError:
        if self.part == "settings":
            return key_changed(self.name, self.now, self.before, source)
        fix = BACK[self.part] + (", or start a new run without resume" if self.fixed else
                                 ", or go on all the same with allow_changes")
        return UserError(WHAT[self.part], where=self.name, found=_shown(self.now), expected=_shown(self.before),
                         fix=fix)

    def line(self) -> str:
        if self.part == "settings":
            return key_note(self.name, self.now, self.before, free=False)
        return f"{WHAT[self.part]}: {self.name} is {_shown(self.now)}, {_shown(self.before)} before"


def _shown(value: Any) -> str:
    return "absent" if value is None else str(value)


def differences(before: Conditions, now: Conditions) -> list[Change]:
    """All that is not as it was; a key counts where both know it (eval_steps is one only with early stopping).

    What a checkpoint of an older version does not hold is not compared: its source differs, which is told.
    """
    found = []
    for part in (p for p in ("settings", *WHAT) if p in before):
        old, new = before[part], now[part]
        names = [name for name in old if name in new] if part == "settings" else [*(old | new)]
        found += [Change(part, name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]
    return found


def digest(value: Any) -> str:
    """SHA-256 of something that JSON can say."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_alike(conditions: Conditions) -> None:
    """Stop where another process computes something else: it would add its gradients to those of this run.

    Processors and threads may differ.
    """
    parts = [part for part in conditions if part != "layout"]
    numbers = [int(digest(conditions[part])[:12], 16) for part in parts]  # so many bits a float64 holds exactly
    high, low = ranks.largest(numbers), ranks.largest([-n for n in numbers])
    if odd := [part for part, most, least in zip(parts, high, low, strict=True) if most != -least]:
        raise UserError("the processes of this run are not alike", where=", ".join(odd),
                        found=f"process {ranks.rank()} has " + "; ".join(
                            f"{part} {digest(conditions[part])[:12]}" for part in odd) + ", another has others",
                        fix="give all machines the same posttrain and libraries, the same settings and the same files")
