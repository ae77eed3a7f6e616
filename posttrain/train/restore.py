"""`resume`: where a run goes on, and what changed since the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core import ranks
from ..core.config import Settings
from ..core.errors import SettingsError, UserError
from ..data.loader import Loader
from ..model.checkpoint import MANIFEST, latest_checkpoint, load_checkpoint
from ..model.policy import Policy, check_same_base
from .conditions import Conditions, check_alike, data_files, differences
from .early_stopping import still_there
from .loop import State
from .optim import MasterAdamW
from .record import Record


def newest_checkpoint(settings: Settings, folder: Path, note: Callable[[str], None]) -> Path | None:
    """Under `resume` the newest checkpoint that verifies, found once, by the first process, and used by all."""
    if not settings.resume:
        return None
    path, skipped, error = None, [], None
    if ranks.first():
        try:
            path, skipped = latest_checkpoint(folder / "checkpoints")
        except UserError as e:
            error = e
    for line in skipped:
        note(line)
    if ranks.any_of(error is not None):
        raise error or ranks.LostError("the first process of this run finds no good checkpoint", where=str(folder))
    step = round(ranks.largest([int(path.name) if path else 0])[0])
    path = folder / "checkpoints" / str(step) if step else None
    if ranks.any_of(path is not None and not (path / MANIFEST).is_file()):
        raise UserError("the processes of this run see different checkpoints", where=str(folder),
                        found=f"the first process sees {path.name}, another does not",
                        fix="put output_dir on a file system that all machines share")
    return path


def restore(settings: Settings, record: Record, optimizer: MasterAdamW, state: State, conditions: Conditions,
            loader: Loader, note: Callable[[str], None], policy: Policy, path: Path | None) -> dict[str, Any]:
    """Masters, moments and state of the checkpoint at `path`, all of which is returned; without one a fresh record.

    Whatever changed since is an error, all of it at once, or with `allow_changes` a note (test_changes.py). Nothing is
    written before that is decided.
    """
    if path is not None or ranks.world() > 1:  # else the files' checksums are waited for by nobody
        conditions = conditions | {"data": data_files(loader.files())}
        check_alike(conditions)
    if path is None:
        if settings.resume:
            note("no checkpoint yet: starting at update 0")
        record.start(settings)
        return {}
    files, saved = load_checkpoint(path)
    check_same_base(policy, saved, path)
    changed = differences(saved["conditions"], conditions)
    if wrong := [c for c in changed if c.fixed or not settings.allow_changes]:
        raise SettingsError([change.error(str(path)) for change in wrong])
    for change in changed:
        note(change.line())
    _load(optimizer, files, saved, path)
    restored = State.from_json(saved)
    restored.best = still_there(restored.best, restored.step, path.parent, note)
    for field in fields(State):
        setattr(state, field.name, getattr(restored, field.name))
    record.settings(settings)
    record.rewind(state.step, note)
    note(f"resumed from {path} (update {state.step})")
    return saved


def _load(optimizer: MasterAdamW, files: dict[str, Any], saved: dict[str, Any], path: Path) -> None:
    """Fill the optimizer tensor by tensor, once the checkpoint is seen to be one of this model."""
    have = set(files["weights"])
    if have != (want := {name for name, _ in optimizer.named}):
        odd = sorted(have ^ want)
        raise UserError("the checkpoint is not one of this model", where=str(path),
                        found=f"{len(odd)} tensors differ, the first: {odd[0]}",
                        fix="resume with the model and method that the run began with")
    optimizer.restore(files, saved["optimizer_steps"])
