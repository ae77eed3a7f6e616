"""What the program chooses where the settings say nothing, each with its reason."""

from __future__ import annotations

from typing import Any

from .config import PACK_TOKENS, Settings, users_of
from .objectives import FACTS, updates_per_batch


def choices(settings: Settings) -> list[tuple[str, Any, str]]:
    """Values the program chooses from the settings alone: (key, value, reason)."""
    made: list[tuple[str, Any, str]] = []
    facts = FACTS[settings.objective]
    if settings.learning_rate is None:
        lora, of = settings.adapts, "" if settings.objective == "sft" else f" of {settings.objective}"
        low, full = facts.rates
        why = (f"the LoRA default{of}; full fine-tuning would take {_short(full)}" if lora else
               f"the default of full fine-tuning{of}; LoRA would take {_short(low)}")
        made.append(("learning_rate", low if lora else full, why))
    if "num_train_epochs" not in settings.model_fields_set and facts.why_epochs and settings.max_steps is None:
        made.append(("num_train_epochs", facts.epochs, facts.why_epochs))
    if settings.beta is None and settings.objective in users_of("beta"):
        simpo = settings.loss_type == "simpo"
        why = ("the default of simpo, which counts nats per token" if simpo else
               "the usual weight of the odds ratio beside the loss of the better answer" if settings.objective == "orpo"
               else "the usual one; lower lets the policy move further")
        made.append(("beta", 2.0 if simpo else 0.1, why))
    if settings.is_sampled and settings.max_steps:
        per = updates_per_batch(settings)
        collections = -(-settings.max_steps // per)
        if settings.max_steps % per:
            made.append(("max_steps", settings.max_steps,
                         f"made in whole collections of {per} updates, so {collections * per} are made"))
        if settings.save_steps is None:
            made.append(saving(settings, collections))
    if "pack_tokens" not in settings.model_fields_set and settings.pack_tokens != PACK_TOKENS:
        made.append(("pack_tokens", settings.pack_tokens, f"{'twice ' * (facts.atom == 2)}max_length; the default of "
                                                          f"{PACK_TOKENS} is too small for it"))
    return made


def saving(settings: Settings, collections: int) -> tuple[str, int, str]:
    """`save_steps` of a run of so many collections that sets none: every tenth, in a short run each third of it."""
    every = max(1, min(10, collections // 3))
    often = "each" if every == 1 else f"every {every}"
    return ("save_steps", every * updates_per_batch(settings),
            f"{often} of {collections} collections: a run that a guard stops later has a checkpoint")


def _short(rate: float) -> str:
    return f"{rate:g}".replace("e-0", "e-") if rate < 1e-4 else f"{rate:.0e}".replace("e-0", "e-")
