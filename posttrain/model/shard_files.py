"""Checkpoints that every process writes its share of: safetensors through torch's Hugging Face storage, no pickle."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..core import ranks

# weights.2-of-4.safetensors: what process 2 of 4 held of the tensors of `weights`
NAME = re.compile(r"(?P<stem>\w+)\.\d+-of-\d+\.safetensors")


def write_shards(folder: Path, files: dict[str, dict[str, torch.Tensor]]) -> None:
    """Write this process's share of the tensors (DTensor; plain ones lie in one share) of each file, and read it back.

    All processes call it, on a folder that they all see and that is there.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    from .checkpoint import flush

    ranks.wait()
    for stem, tensors in files.items():
        try:
            dcp.save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))
        except CheckpointException as e:  # in every process: what failed in any of them
            raise next((cause for cause, _ in e.failures.values() if isinstance(cause, OSError | SafetensorError)),
                       e) from None
        for path in folder.glob(f"shard-{ranks.rank() + 1:05d}-*.safetensors"):
            final = path.with_name(f"{stem}.{ranks.rank() + 1}-of-{ranks.world()}.safetensors")
            path.rename(final)
            flush(final)
            _compare(final, tensors)
    ranks.wait()


def save_together(folder: Path, step: int, files: dict[str, dict[str, torch.Tensor]], state: dict[str, Any],
                  keep: int | None, best: int | None) -> None:
    """A checkpoint by all processes: what is sharded by each, all else by the first (test_ranks.py)."""
    from .checkpoint import save_checkpoint, verify, writing

    final = folder / str(step)
    sharded = any(hasattr(t, "to_local") for tensors in files.values() for t in tensors.values())
    if sharded and ranks.any_of(ranks.first() and (not final.exists() or bool(verify(final)))) and not ranks.first():
        with writing(final):
            write_shards(folder / f".{step}.partial", files)
    if ranks.first():
        save_checkpoint(folder, step, files, state, keep, best, write_shards if sharded else None)
    ranks.wait()


def _compare(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
            tensor = tensors[name]
            meant = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).cpu().contiguous().flatten()
            if not torch.equal(file.get_tensor(name).flatten().view(torch.uint8), meant.view(torch.uint8)):
                raise OSError(errno.EIO, f"{path.name} was not written as it is in memory")


class ShardedFile(Mapping[str, torch.Tensor]):
    """The tensors that several processes wrote shares of, whole, one at a time."""

    def __init__(self, paths: list[Path]):
        self._parts: dict[str, list[tuple[list[int], Path]]] = {}
        for path in paths:
            with safe_open(path, "pt") as file:
                starts = json.loads(file.metadata()["DCP_SHARDING_INFO"])
                for name in file.keys():  # noqa: SIM118
                    self._parts.setdefault(name, []).append((starts[name]["saved_offsets"], path))

    def __getitem__(self, name: str) -> torch.Tensor:
        rows = []
        for _, path in sorted(self._parts[name], key=lambda part: part[0]):
            with safe_open(path, "pt") as file:
                rows.append(file.get_tensor(name))
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)


def sharded_files(paths: list[Path]) -> dict[str, ShardedFile]:
    """{stem: its tensors} of the shares among some files."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        if match := NAME.fullmatch(path.name):
            found.setdefault(match["stem"], []).append(path)
    return {stem: ShardedFile(parts) for stem, parts in found.items()}
