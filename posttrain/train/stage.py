"""The models of PPO and GRPO: actor, critic, reward and reference on one frozen base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.config import Settings
from ..model.adapters import attach_beside
from ..model.forward import Forward
from ..model.policy import Policy
from ..model.resolve import ModelRef
from ..model.roles import CRITIC, POLICY, REFERENCE, Role, Switch, add_critic, without_dropout
from .objective import Models, Objective
from .rollout import Answer, Rollout, last_user_text
from .scoring import Score, ask_reward

Note = Callable[[str], None]


def add_roles(settings: Settings, policy: Policy, ref: ModelRef | None, objective: Objective, note: Note) -> None:
    """Put what trains beside the policy, and what it is held to, onto its base; before the optimizer is made."""
    if not settings.is_sampled:
        return
    without_dropout(policy.model)
    if "values" in objective.needs:
        add_critic(policy.model, settings.seed)
    if ref.adapter:
        attach_beside(policy.model, ref.adapter, REFERENCE)
        note("reference: a frozen copy of the adapter that is continued")
    else:
        note("reference: the base, with every adapter off")


def open_models(settings: Settings, policy: Policy, forward: Forward, spec: Any, score: Score | None,
                note: Note) -> Models:
    """Every model that the objective asks; roles share the base's memory and switch its adapters."""
    if not settings.is_sampled:
        return Models(forward)
    adapters = policy.model.peft_config
    trained = tuple(name for name in (POLICY, CRITIC) if name in adapters)
    switch = Switch(policy.model, trained)
    actor = Role(forward, switch, POLICY)
    rollout = Rollout(actor, spec, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature,
                      seed=settings.seed)
    note(f"one base, {len(adapters)} adapters: {', '.join(n.replace(POLICY, 'actor') for n in adapters)}")
    return Models(actor, reference=Role(forward, switch, REFERENCE if REFERENCE in adapters else None),
                  critic=Role(forward, switch, CRITIC) if CRITIC in adapters else None,
                  reward=FunctionReward(score, settings.reward), rollout=rollout)


class FunctionReward:
    """A reward that is a Python function of prompts, answers and rows."""

    def __init__(self, score: Score, name: str):
        self.score, self.name = score, name

    def __call__(self, answers: list[Answer]) -> list[float]:
        return ask_reward(self.score, self.name, [last_user_text(a.row) for a in answers], [a.text for a in answers],
                          [a.row.raw for a in answers])
