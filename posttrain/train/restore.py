"""`resume`: where a run goes on, and what changed since the checkpoint that it goes on from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from ..core import ranks
from ..core.config import Settings
from ..core.errors import SettingsError, UserError
from ..data.loader import Loader
from ..model.checkpoint import latest_checkpoint, load_checkpoint
from ..model.policy import Policy, check_same_base
from .conditions import Conditions, data_files, differences
from .loop import State
from .optim import MasterAdamW
from .record import Record


def restore(settings: Settings, record: Record, optimizer: MasterAdamW, state: State, conditions: Conditions,
            loader: Loader, note: Callable[[str], None], policy: Policy) -> None:
    """Under `resume`: masters, moments and state of the newest checkpoint that verifies; else a fresh record.

    A file of the data, a version or the layout that changed since is an error, or with `allow_changes` a note
    (test_changes.py). Nothing is written before that is decided.
    """
    if not settings.resume:
        return record.start(settings)
    path, skipped = latest_checkpoint(record.folder / "checkpoints")
    for line in skipped:
        note(line)
    if ranks.differs(0 if path is None else int(path.name)):
        raise UserError("the processes of this run see different checkpoints", where=str(record.folder),
                        found=f"process {ranks.rank()} sees {path.name if path else 'none'}",
                        fix="put output_dir on a file system that all machines share")
    if path is None:
        note("no checkpoint yet: starting at update 0")
        return record.start(settings)
    files, saved = load_checkpoint(path)
    check_same_base(policy, saved, path)
    changed = differences(saved["conditions"], conditions | {"data": data_files(loader.files())})
    if changed and not settings.allow_changes:
        raise SettingsError(changed)
    for error in changed:
        note(f"{error.message}: {error.where} is {error.found}, {error.expected} before")
    _load(optimizer, files, saved, path)
    restored = State.from_json(saved)
    for field in fields(State):
        setattr(state, field.name, getattr(restored, field.name))
    record.settings(settings)
    record.rewind(state.step, note)
    note(f"resumed from {path} (update {state.step})")
    return None


def _load(optimizer: MasterAdamW, files: dict[str, Any], saved: dict[str, Any], path: Any) -> None:
    """Fill the optimizer tensor by tensor, once the checkpoint is seen to be one of this model."""
    have = set(files["weights"])
    if have != (want := {name for name, _ in optimizer.named}):
        odd = sorted(have ^ want)
        raise UserError("the checkpoint is not one of this model", where=str(path),
                        found=f"{len(odd)} tensors differ, the first: {odd[0]}",
                        fix="resume with the model and method that the run began with")
    optimizer.restore(files, saved["optimizer_steps"])
