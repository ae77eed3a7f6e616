"""What a resumed run may change: nothing that would make it another run. No torch here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.app.runs import resumable
from posttrain.core.config import Settings, make_settings, read_config
from posttrain.core.errors import SettingsError, UserError

# Where and how it computes, what is kept and shown, and how much loss is allowed; all else is what the run is.
FREE = frozenset({"output_dir", "resume", "device", "threads", "deterministic", "pack_tokens", "gradient_checkpointing",
                  "trust_remote_code", "max_lost", "save_steps", "save_total_limit", "eval_steps", "logging_steps",
                  "report_to"})


def resumed_values(values: dict[str, Any]) -> dict[str, Any]:
    """The keys of a resume from Python over those of the run's own config.yaml, as on the command line."""
    folder = values.get("output_dir")
    config = None if folder is None else Path(folder) / "config.yaml"
    if config is not None and config.is_file():
        return read_config(config) | values
    known = ", ".join(resumable())
    raise UserError("there is no run to resume", where="output_dir" if folder is None else str(folder),
                    found="not named" if folder is None else "no config.yaml in it",
                    expected=f"one of {known}" if known else "the folder of a run",
                    fix="drop resume to start a new run")


def check_objective(verb: str, values: dict[str, Any], where: str) -> UserError | None:
    """What is wrong where settings that another verb made come to this one; None if nothing is."""
    made = values.get("objective", verb)
    if made == verb:
        return None
    resumes = str(values.get("resume", False)).lower() == "true"
    command = f"posttrain {made} --output_dir {values.get('output_dir')} --resume" if resumes else f"posttrain {made}"
    return UserError(f"these settings are of `posttrain {made}`", where=where, found=f"objective: {made}",
                     expected=f"objective: {verb}, or none", fix=f"use `{command}`")


def check_same_run(settings: Settings, note: Callable[[str], None]) -> None:
    """Stop where a key was changed that makes another run; tell the changes that do not."""
    path = Path(settings.output_dir) / "config.yaml"
    before, now = (s.model_dump(by_alias=True) for s in (make_settings(read_config(path)), settings))
    changed = [key for key in now if now[key] != before[key] and key not in ("output_dir", "resume")]
    if wrong := [key for key in changed if key not in FREE]:
        raise SettingsError([UserError("a resumed run keeps its settings", where=key, found=str(now[key]),
                                       expected=f"{before[key]}, as in {path}",
                                       fix=f"drop {key}, or start a new run without resume") for key in wrong])
    for key in changed:
        note(f"{key} = {now[key]}: {before[key]} before")
