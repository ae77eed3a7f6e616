"""What each objective reads and begins with, by the name of its verb. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Facts:
    """`rows` are the kinds of row it reads; `atom` sequences share a pack; `rates` for lora and full; `epochs`
    where nothing is set, with the reason that is printed."""

    rows: frozenset[str]
    atom: int
    rates: tuple[float, float]
    epochs: float
    why_epochs: str = ""


_PAIR, _PROMPT = frozenset({"pair"}), frozenset({"prompt"})
FACTS = {
    "sft": Facts(frozenset({"conversation", "text"}), 1, (2e-4, 2e-5), 3.0),
    "reward": Facts(_PAIR, 2, (1e-4, 1e-5), 1.0, "a reward model learns preferences by heart in a second pass"),
    "ppo": Facts(_PROMPT, 1, (1e-4, 1e-6), 1.0),
    "grpo": Facts(_PROMPT, 1, (1e-4, 1e-6), 1.0),
    "online_dpo": Facts(_PROMPT, 2, (2e-5, 1e-6), 1.0),
    "dpo": Facts(_PAIR, 2, (2e-5, 1e-6), 1.0, "preferences are learnt in one pass"),
    "orpo": Facts(_PAIR, 2, (5e-5, 5e-6), 1.0, "preferences are learnt in one pass"),
    "kto": Facts(frozenset({"label"}), 2, (2e-5, 1e-6), 1.0, "preferences are learnt in one pass"),
}
SAMPLED = ("ppo", "grpo", "online_dpo")  # objectives that learn from their own answers


def updates_per_batch(settings: Any) -> int:
    """Optimizer updates of one batch of rows: of a collection its epochs times its minibatches, else one."""
    if settings.objective not in SAMPLED:
        return 1
    return settings.minibatches * (settings.ppo_epochs if settings.objective == "ppo" else 1)
