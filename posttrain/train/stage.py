"""The models of PPO and GRPO: actor, critic, reward and reference on one frozen base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.config import Settings
from ..data.tokenizer import load_tokenizer
from ..model.adapters import attach_beside
from ..model.forward import Forward
from ..model.policy import Policy
from ..model.resolve import ModelRef
from ..model.roles import CRITIC, POLICY, REFERENCE, REWARD, Role, Switch, add_critic, without_dropout
from .objective import Models, Objective
from .reference import as_lowered
from .rewards import FunctionReward, RoleReward, attach_reward, reads_alike, reward_ref, separate_reward, shares_base
from .rollout import Rollout
from .scoring import Score

Note = Callable[[str], None]


def add_roles(settings: Settings, policy: Policy, ref: ModelRef | None, objective: Objective, note: Note) -> None:
    """Put what trains beside the policy, and what it is held to, onto its base; before the optimizer is made."""
    if not settings.is_sampled:
        return
    if "values" in objective.needs:
        add_critic(policy.model, settings.seed)
    if ref.adapter:
        attach_beside(policy.model, ref.adapter, REFERENCE)
        for name, p in policy.model.named_parameters():
            if REFERENCE in name.split("."):
                p.data = as_lowered(policy, name, p.data)  # the actor is: what differs would be a distance
        note("reference: a frozen copy of the adapter that is continued")
    else:
        note("reference: the base, with every adapter off")


def _reward(settings: Settings, policy: Policy, forward: Forward, spec: Any, score: Score | None, note: Note):
    """What scores answers; `role` makes a reward adapter's forward once every adapter is there."""
    if score is not None:
        return lambda switch: FunctionReward(score, settings.reward)
    ref = reward_ref(settings.reward)
    theirs = load_tokenizer(ref.tokenizer, trust_remote_code=settings.trust_remote_code)
    if not (shares_base(ref, policy) and reads_alike(theirs, spec)):
        made, how = separate_reward(ref, theirs, spec, settings)
        note(f"reward: {settings.reward}, a model of its own; {how}")
        return lambda switch: made
    head = attach_reward(ref, policy)
    note(f"reward: {settings.reward}, an adapter on the policy's base")
    scoring = Forward(forward.model, flat=forward.flat, heads={"score": head})
    return lambda switch: RoleReward(Role(scoring, switch, REWARD), settings.pack_tokens)


def open_models(settings: Settings, policy: Policy, forward: Forward, spec: Any, score: Score | None,
                note: Note) -> Models:
    """Every model that the objective asks; roles share the base's memory and switch its adapters."""
    if not settings.is_sampled:
        return Models(forward)
    make_reward = _reward(settings, policy, forward, spec, score, note)
    without_dropout(policy.model)  # once every adapter is there
    adapters = policy.model.peft_config
    trained = tuple(name for name in (POLICY, CRITIC) if name in adapters)
    switch = Switch(policy.model, trained)
    actor = Role(forward, switch, POLICY)
    rollout = Rollout(actor, spec, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature,
                      seed=settings.seed)
    note(f"one base, {len(adapters)} adapters: {', '.join(n.replace(POLICY, 'actor') for n in adapters)}")
    return Models(actor, reference=Role(forward, switch, REFERENCE if REFERENCE in adapters else None),
                  critic=Role(forward, switch, CRITIC) if CRITIC in adapters else None,
                  reward=make_reward(switch), rollout=rollout)
