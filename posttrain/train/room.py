"""Memory that ran out on CUDA: the same update in smaller packs, then with activations recomputed, else an end."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..core import ranks
from ..core.config import Settings
from ..core.errors import UserError
from ..core.objectives import FACTS
from ..model.policy import recompute_activations

T = TypeVar("T")
KEYS = ("pack_tokens", "gradient_checkpointing")  # that give way


def within_memory(loop: Any, step: Callable[[], T]) -> T:
    """The result of `step`, tried again with less where the GPU's memory ran out before the weights were changed.

    Halves `pack_tokens` down to the longest row, then keeps only each layer's input; the gradient of the update is the
    same to rounding (test_room.py::test_an_update_repeated_is_the_update). `loop` holds what is in force from there on.
    """
    while True:
        before = loop.optimizer.steps
        try:
            return step()
        except torch.cuda.OutOfMemoryError as e:
            said = str(e).split("\n")[0][:200]
        # outside the handler: its traceback no longer holds the tensors of the failed forward
        loop.optimizer.begin(1)
        give_way(loop, said, repeatable=loop.optimizer.steps == before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def least_pack(settings: Settings) -> int:
    """Tokens of the smallest pack that holds every atom."""
    return FACTS[settings.objective].atom * settings.longest


def give_way(loop: Any, said: str, repeatable: bool = True) -> None:
    """One milder value in force; a UserError with the remedy where none is left, or an update cannot be repeated."""
    settings = loop.settings
    if not repeatable or ranks.world() > 1 or settings.gradient_checkpointing and (
            settings.pack_tokens <= least_pack(settings)):
        raise no_memory(settings, said)
    if settings.pack_tokens > least_pack(settings):
        change: dict[str, Any] = {"pack_tokens": max(least_pack(settings), settings.pack_tokens // 2)}
    else:
        change = {"gradient_checkpointing": True}
        recompute_activations(loop.models.policy.model)
    loop.change_layout(change)
    (key, value), = change.items()
    loop.remark(f"memory ran out ({said}): the same update again with {key} = {str(value).lower()}")


def no_memory(settings: Settings, said: str) -> UserError:
    """What would help, by what is already in force."""
    helps = []
    if settings.pack_tokens > least_pack(settings):
        helps.append(f"pack_tokens: {least_pack(settings)}")
    if not settings.gradient_checkpointing:
        helps.append("gradient_checkpointing: true")
    helps += {"full": ["method: lora"], "lora": ["method: qlora"]}.get(settings.method, [])
    fix = f"set {' and '.join(helps[:2])}" if helps else "lower max_length, or take a smaller model"
    return UserError("the GPU's memory ran out", where="pack_tokens", found=said,
                     fix=f"{fix}; `posttrain plan` says what fits")


def in_force(checkpoint: Path | None) -> dict[str, Any]:
    """The keys that gave way before a good checkpoint, which was computed with them."""
    if checkpoint is None:
        return {}
    saved = json.loads((checkpoint / "state.json").read_text("utf-8")).get("in_force") or {}
    return {key: saved[key] for key in KEYS if key in saved}
