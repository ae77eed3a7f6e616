"""What stops a run that blows up: a few bounds far from anything healthy, and a diagnosis in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import UserError


class BlownUp(UserError):
    """A guard stopped the run; the message is the diagnosis."""


@dataclass(frozen=True, slots=True)
class Guard:
    """`trips(now, first)` on a collection's facts and those of the run's first; `seen` what it then shows."""

    message: str
    seen: str
    expected: str
    fix: str
    trips: Callable[[dict[str, Any], dict[str, Any]], bool]


GUARDS = (
    Guard("the policy has left its reference", "kl {kl:.1f} nats per answer, {k1:.2f} per token",
          "below 50 nats per answer, or 0.5 per token",
          "raise kl_coef (of online_dpo: beta), or lower learning_rate: what it writes now may please the reward alone",
          lambda now, first: now["kl"] > 50 and now["k1"] > 0.5),
    Guard("one collection moved the policy too far", "mean ratio to the policy that sampled: {ratio:.2f}",
          "between 0.33 and 3", "lower learning_rate or ppo_epochs, or set early_stop_kl",
          lambda now, first: not 1 / 3 < now.get("ratio", 1.0) < 3),
    Guard("the critic's loss blew up", "value loss {value_loss:.3g}, explained variance {explained_variance:.3g}",
          "an explained variance above -30",
          "lower learning_rate, raise critic_warmup, or check the scale of the reward (normalize_reward: true)",
          lambda now, first: now.get("explained_variance", 0.0) < -30 and now.get("value_loss", 0.0) > 10),
    Guard("the policy has collapsed: it hardly samples any more", "entropy {entropy:.2g} nats per token",
          "above a thousandth of the first collection's",
          "raise entropy_coef or kl_coef (of online_dpo: beta), or lower learning_rate; look at samples.jsonl",
          lambda now, first: now["entropy"] < 1e-3 * first["entropy"] and now["entropy"] < 1e-3),
    Guard("the answers no longer end", "{answer_tokens:.0f} tokens on average, {stop_rate:.0%} stop by themselves",
          "less than three times the first collection's length, or half of its stops",
          "raise missing_eos_penalty or kl_coef (of online_dpo: beta); look at samples.jsonl for what is repeated",
          lambda now, first: now["answer_tokens"] > 3 * first["answer_tokens"]
          and now["stop_rate"] < 0.5 * first["stop_rate"]),
)


def check_guards(now: dict[str, Any], first: dict[str, Any], step: int) -> None:
    """Stop with a diagnosis where a bound is broken (test_guards.py trips each)."""
    for guard in GUARDS:
        if guard.trips(now, first):
            names = [n for n in ("kl", "entropy", "answer_tokens", "stop_rate", "reward") if n in first]
            began = ", ".join(f"{name} {first[name]:.3g}" for name in names)
            raise BlownUp(guard.message, where=f"after update {step}", found=guard.seen.format_map(now),
                          expected=f"{guard.expected}\n(at first: {began})", fix=guard.fix)
