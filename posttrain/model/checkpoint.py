"""Checkpoints: written beside, flushed, verified, renamed; safetensors and JSON only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.errors import UserError
from .resolve import list_checkpoints

MANIFEST = "manifest.json"


def save_checkpoint(folder: Path, step: int, files: dict[str, dict[str, torch.Tensor]], state: dict[str, Any],
                    keep: int) -> Path:
    """Write `folder/STEP` whole or not at all, then remove all but the newest `keep` -> its path.

    `files` maps a name to tensors (NAME.safetensors); `state` becomes state.json. Every tensor is read back and
    compared before the manifest (sizes and SHA-256) is written and the folder takes its name; only then may an older
    checkpoint go (test_checkpoint.py).
    """
    final, partial = folder / str(step), folder / f".{step}.partial"
    with writing(final, partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name, tensors in files.items():
            _write_tensors(partial / f"{name}.safetensors", tensors)
        _write_json(partial / "state.json", state)
        parts = sorted(p for p in partial.iterdir())
        _write_json(partial / MANIFEST, {"step": step, "files": {
            p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in parts}})
        _flush_folder(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _flush_folder(folder)
    for old in (*list_checkpoints(folder)[:-keep], *folder.glob(".*.partial")):  # and what a killed run left half
        shutil.rmtree(old)
    return final


def verify(path: Path) -> str:
    """What is wrong with a checkpoint, by its manifest's sizes and checksums ('' when nothing is)."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        for name, facts in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
            if sha256(file) != facts["sha256"]:
                return f"the checksum of {name} differs"
    except (OSError, ValueError, KeyError, TypeError) as e:
        return f"its manifest cannot be read ({e})"
    return ""


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not."""
    skipped = []
    for path in reversed(list_checkpoints(folder)):
        if not (wrong := verify(path)):
            return path, skipped
        skipped.append(f"checkpoint {path} is damaged ({wrong}); the one before it is used")
    return None, skipped


def load_checkpoint(path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any]]:
    """(tensors by file and name, state) of a verified checkpoint."""
    files = {p.stem: read_tensors(p) for p in path.glob("*.safetensors")}
    return files, json.loads((path / "state.json").read_text("utf-8"))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, by name."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no mapping


@contextmanager
def writing(where: Path, partial: Path | None = None) -> Iterator[None]:
    """Inside it a failed write is one UserError about `where`; `partial` is removed whatever the failure was."""
    try:
        yield
    except BaseException as e:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
        # the tokenizers library raises a bare Exception with the system's number in its text
        if isinstance(e, OSError | SafetensorError) or (type(e) is Exception and "(os error" in str(e)):
            raise write_error(e, where) from e
        raise


def write_error(e: BaseException, where: Path) -> UserError:
    """The error a person needs when a write failed: no space, read-only, or what the system said."""
    code, text = getattr(e, "errno", None), str(e)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        free = shutil.disk_usage(_existing(where)).free
        return UserError("no space left on the disk", where=str(where), found=f"{free / 1e9:.2f} GB free",
                         fix="make room, or put output_dir on another disk; then go on with resume: the last complete "
                             "checkpoint is good")
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError("the run folder cannot be written", where=str(where), found=text, fix="set another output_dir")
    return UserError("writing failed", where=str(where), found=text)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    held = {n: t.detach().contiguous() for n, t in tensors.items()}
    save_file(held, path)
    _flush(path)
    with safe_open(path, "pt") as file:
        for name, tensor in held.items():
            read, meant = file.get_tensor(name).flatten(), tensor.cpu().flatten()
            if not torch.equal(read.view(torch.uint8), meant.view(torch.uint8)):  # bytes: NaN equals NaN
                raise OSError(errno.EIO, f"{path.name} was not written as it is in memory")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")
    _flush(path)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
