"""What a run reads beside its data and its base: each changes the numbers, and none of it lies in a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from ..core.config import Settings
from ..data.tokenizer import TokenizerSpec
from ..model.checkpoint import sha256
from ..model.identity import base_hash
from ..model.resolve import ModelRef, resolve_model
from .conditions import digest

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def inputs_of(settings: Settings, ref: ModelRef | None, spec: TokenizerSpec, *, held_to_start: bool,
              scored_by_model: bool) -> dict[str, str]:
    """{key of the settings: SHA-256 of what it names}, of all that decides about the numbers (test_inputs.py).

    `held_to_start`: the objective reads an adapter that is continued again at every start, as its reference.
    """
    found = {"chat_template": digest(spec.template), "tokenizer": digest(
        [spec.backend, spec.names, spec.control, spec.text_prefix, spec.text_suffix])}
    if settings.architecture:
        found["model_config"] = sha256(Path(settings.architecture))
    if held_to_start and ref is not None and ref.adapter:
        found["model"] = _adapter(ref.adapter)
    if settings.is_sampled and (reward := _model(settings.reward) if scored_by_model else _file(settings.reward)):
        found["reward"] = reward
    return {key: f"sha256 {value}" for key, value in found.items()}


def _adapter(folder: Path) -> str:
    """An adapter's weights and what says how they are applied, wherever its base lies."""
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    return digest([sha256(folder / "adapter_model.safetensors"), config | {"base_model_name_or_path": None}])


def _model(name: str) -> str:
    """A reward model: its base, its adapter and how it reads."""
    ref = resolve_model(name)
    files = [Path(ref.tokenizer) / name for name in TOKENIZER_FILES]
    return digest([base_hash(ref.base), ref.adapter and _adapter(ref.adapter),
                    [sha256(path) for path in files if path.is_file()]])


def _file(reward: str) -> str | None:
    """The Python file of a reward function; every other reward is part of the code."""
    path = Path(reward.rpartition(":")[0] or reward)
    return sha256(path) if path.suffix == ".py" and path.is_file() else None
