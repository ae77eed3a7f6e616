"""A run's folder: held by one start at a time, and as it was before where nothing came of a start."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from posttrain.app.runs import fresh_run
from posttrain.core import ranks
from posttrain.core.config import Settings, read_config
from posttrain.core.errors import UserError

# Who works in the folder, locked for as long as that process lives: it stays behind only where the process was killed.
RUNNING = ".running"
# What a start that was killed may have made before it wrote its settings; ours only where RUNNING lies beside it.
BEGUN = {"tokenizer", "architecture.yaml", ".config.yaml.partial"}
PATIENCE = 60  # seconds in which the first process of an earlier start, perhaps on another machine, is gone


@dataclass(slots=True)
class Held:
    """The folder that a start works in; once it has `begun` to train, what it wrote stays."""

    path: Path
    begun: bool = False


@contextmanager
def held(settings: Settings) -> Iterator[Held]:
    """Inside it this start alone works in the run's folder; a second one is an error that names the process.

    Where it fails before anything is trained it leaves nothing that it wrote, and everything that was there before it
    (test_folder.py).
    """
    if not ranks.first():
        yield Held(_named(settings))
        return
    going_on = settings.resume or ranks.restarts() > 0
    if not going_on:
        check_free(settings)
    made = settings.output_dir is None and ranks.world() == 1
    path = fresh_run(settings.objective) if made else _named(settings)
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        made = True
    with _locked(path):
        if not going_on:
            _clear_begun(path, settings)
        place, found = Held(path), {p.name for p in path.iterdir()}
        try:
            yield place
        except BaseException:
            if not place.begun and not going_on:
                for new in (path,) if made else (p for p in path.iterdir() if p.name not in found):
                    _remove(new)
            raise


def check_free(settings: Settings) -> None:
    """A UserError where nothing can begin in output_dir: another run works there, or it holds anything but a start of
    ours that was killed."""
    if settings.output_dir is None:
        return
    folder = Path(settings.output_dir)
    check_unused(folder)
    names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if not folder.exists() or (folder.is_dir() and (not names or RUNNING in names and names <= BEGUN | {RUNNING})):
        return
    is_run = (folder / "config.yaml").is_file()
    raise UserError("the output folder is in use", where=str(folder),
                    found="a run" if is_run else "other files" if folder.is_dir() else "a file",
                    fix=f"go on with `posttrain {settings.objective} --output_dir {quote(str(folder))} --resume`, "
                        "or name another folder" if is_run else "name another folder")


def check_unused(folder: Path) -> None:
    """A UserError where a process works in this folder now."""
    try:
        handle = _lock(folder / RUNNING, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return
    if handle is None:
        raise _in_use(folder)
    os.close(handle)


def check_settings_kept(folder: Path) -> None:
    """A UserError where a run's config.yaml no longer says what the run is: its defaults would be another run."""
    path = folder / "config.yaml"
    if path.is_file() and "objective" not in (found := read_config(path)):
        raise UserError("the settings of this run are lost", where=str(path),
                        found="no objective" if found else "no keys", expected="the keys that the run began with",
                        fix="bring config.yaml back from a copy, or name another folder")


def _named(settings: Settings) -> Path:
    """The folder that is named, as several processes that were started beside each other must do."""
    if settings.output_dir is None:
        raise UserError("several processes need one run folder", where="output_dir", found="not set",
                        fix="name it with --output_dir, or let --processes N start them")
    return Path(settings.output_dir)


def _clear_begun(folder: Path, settings: Settings) -> None:
    """Remove what a killed start left, but for what the user now names as input."""
    named = {Path(name).resolve() for name in (settings.tokenizer, settings.architecture) if name}
    for name in BEGUN:
        if (path := folder / name).exists() and path.resolve() not in named:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path, until = folder / RUNNING, time.monotonic() + (PATIENCE if ranks.restarts() else 0)
    while (handle := _lock(path, os.O_RDWR | os.O_CREAT)) is None:
        if time.monotonic() >= until:
            raise _in_use(folder)
        time.sleep(0.1)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        yield
    finally:
        with suppress(OSError):  # a disk that became read-only, which the run has told
            path.unlink()
        os.close(handle)


def _lock(path: Path, flags: int) -> int | None:
    """The file, open and locked; None where another process holds it. The system unlocks it when its holder ends."""
    while True:
        handle = os.open(path, flags, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError:  # a file system that knows no locks
            return handle
        if os.fstat(handle).st_nlink:
            return handle
        os.close(handle)  # its holder has just ended and removed it


def _in_use(folder: Path) -> UserError:
    try:
        who = (folder / RUNNING).read_text("utf-8")
    except OSError:
        who = ""
    return UserError("the output folder is in use", where=str(folder),
                     found=f"{who or 'a process'} works there now", fix="let it end or stop it, or name another folder")
