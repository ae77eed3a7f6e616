"""Which settings a resumed run may change. No torch here."""

from __future__ import annotations

from typing import Any

from .config import Settings
from .errors import UserError

# What the result does not depend on (where and how it computes is compared as it turned out, with the checkpoint).
FREE = frozenset({"output_dir", "resume", "allow_changes", "device", "threads", "pack_tokens", "gradient_checkpointing",
                  "trust_remote_code", "max_lost", "save_steps", "save_total_limit", "eval_steps", "logging_steps",
                  "report_to", "processes", "max_restarts"})
# What a checkpoint fits to: another one of these is another model.
FIXED = frozenset({"model", "model_config", "tokenizer", "chat_template", "objective", "method", "lora_r",
                   "lora_target_modules", "use_dora"})


def free_keys(settings: Settings) -> frozenset[str]:
    """The keys that may change without a word of leave; with early stopping validation decides where to stop."""
    return FREE - ({"eval_steps"} if settings.early_stopping_patience else set())


def kept_values(settings: Settings) -> dict[str, Any]:
    """What a checkpoint holds of the settings: all but the free ones, as JSON; a shape counts by its file's content."""
    values = settings.model_dump(mode="json", by_alias=True)
    return {key: values[key] for key in values if key not in free_keys(settings) | {"model_config"}}


def key_changed(key: str, now: Any, before: Any, source: str) -> UserError:
    """The error of a key that is not as it was by `source`."""
    fix = f"put {key} back, or start a new run without resume"
    if key not in FIXED:
        fix += ", or change it all the same with allow_changes"
    return UserError("a resumed run keeps its settings", where=key, found=str(now),
                     expected=f"{before}, as in {source}", fix=fix)


def key_note(key: str, now: Any, before: Any, free: bool) -> str:
    """The line that tells a change that is allowed."""
    return f"{key} = {now}: {before} before" + ("" if free else "; no longer the run that it was")
