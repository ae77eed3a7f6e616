"""Checkpoints: written beside, flushed, verified, renamed; safetensors and JSON only."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..core.errors import UserError, WriteError
from ..core.fault import fault_point
from .resolve import list_checkpoints
from .shard_files import sharded_files

MANIFEST = "manifest.json"

Files = dict[str, dict[str, torch.Tensor]]
Write = Callable[[Path, Files], None]


def save_checkpoint(folder: Path, step: int, files: Files, state: dict[str, Any],
                    keep: int | None, best: int | None = None, write: Write | None = None) -> Path:
    """Write `folder/STEP` whole or not at all, then remove all but the newest `keep` (None: none) and `best`; its path.

    `files` maps a name to tensors (NAME.safetensors, or what `write` makes of them); `state` becomes state.json. Every
    tensor is read back and
    compared before the manifest (sizes and SHA-256) is written and the folder takes its name; only then may an older
    checkpoint go (test_checkpoint.py). A good one of this step is left as it is: the step's state is always the same.
    """
    final, partial = folder / str(step), folder / f".{step}.partial"
    if not final.exists() or verify(final):
        with writing(final, partial):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (write or _write_files)(partial, files)
            _write_json(partial / "state.json", state)
            fault_point("save.state")
            parts = sorted(p for p in partial.iterdir())
            _write_json(partial / MANIFEST, {"step": step, "files": {
                p.name: {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in parts}})
            flush_folder(partial)
            fault_point("save.manifest")
            if final.exists():  # damaged, or its manifest would have been good
                shutil.rmtree(final)
            partial.rename(final)
            for parent in (folder, folder.parent):
                flush_folder(parent)
            fault_point("save.renamed")
    if keep is not None:
        _prune(folder, step, keep, best)
    return final


def _write_files(folder: Path, files: Files) -> None:
    for name, tensors in files.items():
        _write_tensors(folder / f"{name}.safetensors", tensors)
        fault_point(f"save.{name}")


def _prune(folder: Path, step: int, keep: int, best: int | None) -> None:
    """Remove what a killed run left half, what lies beyond this step (damaged, or it would have been gone on from), and
    all but the newest `keep` and the `best` one."""
    kept = [folder / str(best), *[p for p in list_checkpoints(folder) if int(p.name) <= step][-keep:]]
    for old in (*list_checkpoints(folder), *folder.glob(".*.partial")):
        if old not in kept:
            with writing(old):
                shutil.rmtree(old)
            fault_point("save.pruned")


def verify(path: Path) -> str:
    """What is wrong with a checkpoint, by its manifest's sizes and checksums ('' when nothing is)."""
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if path.name.isdigit() and manifest["step"] != int(path.name):
            return f"its manifest is that of update {manifest['step']}"
        if len(manifest["files"].keys() - {"state.json"}) == 0 or "state.json" not in manifest["files"]:
            return "its manifest does not list its files"
        for name, facts in manifest["files"].items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != facts["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {facts['bytes']}"
            if sha256(file) != facts["sha256"]:
                return f"the checksum of {name} differs"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"its manifest cannot be read ({e})"
    return ""


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and a line for each newer one that does not; (None, []) if there is none.

    Where all of them are damaged that is an error: to begin again at 0 in silence would throw work away.
    """
    wrong: dict[Path, str] = {}
    for path in reversed(list_checkpoints(folder)):
        if not (what := verify(path)):
            return path, [f"checkpoint {p} is damaged ({w}); the one before it is used" for p, w in wrong.items()]
        wrong[path] = what
    if wrong:
        raise UserError("no checkpoint of this run can be used", where=str(folder),
                        found="\n".join(f"{p.name}: {w}" for p, w in wrong.items()),
                        fix="bring one back from a copy, or remove this folder to begin again at update 0")
    return None, []


def load_checkpoint(path: Path) -> tuple[dict[str, Mapping[str, torch.Tensor]], dict[str, Any]]:
    """(tensors by file and name, read when they are asked for; state) of a verified checkpoint."""
    manifest = json.loads((path / MANIFEST).read_text("utf-8"))
    held = [path / name for name in manifest["files"] if name.endswith(".safetensors")]
    files = {p.stem: TensorFile(p) for p in held if "." not in p.stem} | sharded_files(held)
    return files, json.loads((path / "state.json").read_text("utf-8"))


class TensorFile(Mapping[str, torch.Tensor]):
    """A safetensors file by name, one tensor at a time: opened for each, so that none keeps the file in memory."""

    def __init__(self, path: Path):
        self.path = path
        with safe_open(path, "pt") as file:
            self._names = dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._names:
            raise KeyError(name)
        with safe_open(self.path, "pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


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


def write_error(e: BaseException, where: Path) -> WriteError:
    """The error a person needs when a write failed: no space, read-only, or what the system said."""
    code, text = getattr(e, "errno", None), str(e)
    if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in text or "os error 28" in text:
        free = shutil.disk_usage(_existing(where)).free
        return WriteError("no space left on the disk", where=str(where), found=f"{free / 1e9:.2f} GB free",
                          fix="make room, or put output_dir on another disk; then go on with resume: the last complete "
                              "checkpoint is good")
    if code in (errno.EROFS, errno.EACCES, errno.EPERM):
        return WriteError("the run folder cannot be written", where=str(where), found=text,
                          fix="make it writable and go on with resume, or set another output_dir")
    return WriteError("writing failed", where=str(where), found=text)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    held = {n: t.detach().contiguous() for n, t in tensors.items()}
    save_file(held, path)
    flush(path)
    written = TensorFile(path)
    for name, tensor in held.items():
        read, meant = written[name].flatten(), tensor.cpu().flatten()
        if not torch.equal(read.view(torch.uint8), meant.view(torch.uint8)):  # bytes: NaN equals NaN
            raise OSError(errno.EIO, f"{path.name} was not written as it is in memory")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), "utf-8")
    flush(path)


def flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def flush_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _existing(path: Path) -> Path:
    return next(p for p in (path, *path.parents) if p.exists())
