"""What a resumed run may change: nothing that would make it another run. No torch here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from posttrain.app.runs import resumable
from posttrain.core.changes import FIXED, free_keys, key_changed, key_note
from posttrain.core.config import Settings, make_settings, read_config
from posttrain.core.errors import SettingsError, UserError
from posttrain.core.status import is_finished
from posttrain.model.resolve import list_checkpoints

# Chosen by the program at the first start where the user leaves it open: asked for again, it is what it was.
CHOSEN = {"learning_rate": None, "pack_tokens": "auto", "template_date": None}
NAMES_A_RUN = frozenset({"model", "model_config", "data"})


def names_a_run(values: Mapping[str, Any]) -> bool:
    """Whether a command says enough to begin: then `resume` may stand in it from its first start on."""
    return bool(NAMES_A_RUN & values.keys())


def resumed_values(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a resume from Python over those of the run's own config.yaml, as on the command line."""
    folder = values.get("output_dir")
    config = None if folder is None else Path(folder) / "config.yaml"
    if config is not None and config.is_file():
        return read_config(config) | values
    if config is not None and names_a_run(values):
        return values
    known = ", ".join(resumable())
    raise UserError("there is no run to resume", where="output_dir" if folder is None else str(folder),
                    found="not named" if folder is None else "no config.yaml in it",
                    expected=f"one of {known}" if known else "the folder of a run",
                    fix="name the model or the data to start a new run there")


def check_objective(verb: str, values: dict[str, Any], where: str) -> UserError | None:
    """What is wrong where settings that another verb made come to this one; None if nothing is."""
    made = values.get("objective", verb)
    if made == verb:
        return None
    resumes = str(values.get("resume", False)).lower() == "true"
    command = f"posttrain {made} --output_dir {values.get('output_dir')} --resume" if resumes else f"posttrain {made}"
    return UserError(f"these settings are of `posttrain {made}`", where=where, found=f"objective: {made}",
                     expected=f"objective: {verb}, or none", fix=f"use `{command}`")


def check_same_run(settings: Settings, note: Callable[[str], None]) -> Settings:
    """Settings of a resumed run, with what was chosen at its start; an error where a key makes it another run.

    `allow_changes` lets a key change that breaks exactness, but none that the checkpoint's tensors depend on
    (test_changes.py). Where there is no run yet, the settings of a new one. Where there is a checkpoint, that is what
    decides, together with all else that changed since (train/restore.py): config.yaml may have been edited.
    """
    folder = Path(settings.output_dir)
    path = folder / "config.yaml"
    if not path.is_file():
        note(f"there is no run in {folder} yet: starting at update 0")
        return settings.model_copy(update={"resume": False, "allow_changes": False})
    first = make_settings(read_config(path))
    kept = {key: getattr(first, key) for key, left in CHOSEN.items() if getattr(settings, key) == left}
    if settings.architecture and _same_bytes(settings.architecture, folder / "architecture.yaml"):
        kept["architecture"] = first.architecture  # the run's own copy
    settings = settings.model_copy(update=kept)
    before, now = (s.model_dump(by_alias=True) for s in (first, settings))
    changed = [key for key in now if now[key] != before[key] and key not in ("output_dir", "resume", "allow_changes")]
    free, later = free_keys(settings), _goes_on(folder)
    allowed = free | (now.keys() - FIXED if settings.allow_changes else set())
    wrong = [key for key in changed if key not in allowed]
    if wrong and not (later and FIXED.isdisjoint(wrong)):
        raise SettingsError([key_changed(key, now[key], before[key], str(path)) for key in wrong])
    for key in changed:
        if key in free or not later:
            note(key_note(key, now[key], before[key], key in free))
    return settings


def _goes_on(folder: Path) -> bool:
    """Whether there is a checkpoint from which the run will go on."""
    return bool(list_checkpoints(folder / "checkpoints")) and not is_finished(folder)


def _same_bytes(one: str, other: Path) -> bool:
    try:
        return Path(one).read_bytes() == other.read_bytes()
    except OSError:
        return False
