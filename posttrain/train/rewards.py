"""Where scores come from: a function, a reward adapter on the policy's own base, or a reward model of its own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..core.errors import RowError, UserError
from ..core.sequence import STOP, Row, Sequence
from ..data.gather import up_to_the_stop
from ..data.render import Renderer
from ..data.tokenizer import TokenizerSpec
from ..data.weigh import Rendered
from ..model.adapters import attach_scorer
from ..model.heads import ScalarHead
from ..model.identity import check_base, read_base
from ..model.policy import Policy
from ..model.resolve import ModelRef, gives_scores, resolve_model
from ..model.reward import Scorer, open_scorer
from ..model.roles import REWARD, Role
from .rollout import Answer, last_user_text, lay
from .scoring import Score, ask_reward
from .update import lay_packs


class FunctionReward:
    """A reward that is a Python function of prompts, answers and rows; one that `abstains` may have no verdict, NaN."""

    def __init__(self, score: Score, name: str):
        self.score, self.name, self.abstains = score, name, getattr(score, "abstains", False)

    def __call__(self, answers: list[Answer]) -> list[float]:
        return ask_reward(self.score, self.name, [last_user_text(a.row) for a in answers], [a.text for a in answers],
                          [a.row.raw for a in answers])


class RoleReward:
    """A reward adapter on the policy's base: answers are scored in packs, as they were sampled."""

    def __init__(self, role: Role, pack_tokens: int):
        self.role, self.pack_tokens = role, pack_tokens

    @torch.no_grad()
    def __call__(self, answers: list[Answer]) -> list[float]:
        scores: dict[int, float] = {}
        for number, answer in enumerate(answers):
            answer.sequence.facts = {"place": float(number)}
        for pack in lay_packs([[a.sequence] for a in answers], self.pack_tokens):
            found = self.role(pack.to(self.role.device), {"scores"}).scores_S.tolist()
            scores |= dict(zip(pack.columns["place"].long().tolist(), found, strict=True))
        return [scores[number] for number in range(len(answers))]


class ModelReward:
    """A reward model of its own. With another tokenizer or template answers reach it as text, rendered by its own.

    An answer of nothing is the prompt and the token that ends a turn, as it would be in the reward model's own words
    (test_reward_models.py::test_an_empty_answer_is_a_prompt_that_ends); one that never ended has no such token
    (test_an_answer_that_never_ended_has_no_stop).
    """

    def __init__(self, scorer: Scorer, renderer: Renderer | None, name: str):
        self.scorer, self.renderer, self.name = scorer, renderer, name

    def __call__(self, answers: list[Answer]) -> list[float]:
        if self.renderer is None:
            return self.scorer([a.sequence for a in answers])
        rows = [Row("conversation", a.row.origin, messages=[
            *a.row.messages, {"role": "assistant", "content": a.text}], tools=a.row.tools) for a in answers if a.text]
        made = iter(zip(rows, self.renderer.render(rows), strict=True))
        return self.scorer([self._taken(a, *next(made)) if a.text else self._empty(a) for a in answers])

    def _taken(self, answer: Answer, row: Row, made: Rendered | RowError) -> Sequence:
        if isinstance(made, RowError) or not made.sequences:
            raise UserError("the reward model's template cannot render an answer", where=f"reward: {self.name}",
                            found=str(made.message if isinstance(made, RowError) else made.dropped) +
                            f" ({row.origin})", fix="take a reward model with the policy's template")
        whole = up_to_the_stop(made.sequences[-1])
        return whole if answer.stopped else _without_the_stop(whole)

    def _empty(self, answer: Answer) -> Sequence:
        prompt = self.renderer.prompt(answer.row.messages, answer.row.tools)
        return lay(prompt, self.renderer.stop_ids[:1] if answer.stopped else [], answer.stopped, answer.row.origin)


def _without_the_stop(whole: Sequence) -> Sequence:
    end = int(np.flatnonzero(whole.reasons != STOP)[-1]) + 1
    return replace(whole, ids=whole.ids[:end], weights=whole.weights[:end], reasons=whole.reasons[:end])


def reward_ref(name: str) -> ModelRef:
    """The reward model that `reward` names; one that gives words is a UserError."""
    ref = resolve_model(name)
    if not ref.is_hub and not gives_scores(ref):
        raise UserError("the reward gives words, not scores", where=f"reward: {name}",
                        expected="a reward model: the run or folder that `posttrain reward` made, or a "
                                 "ForSequenceClassification folder", fix="train one with `posttrain reward`")
    return ref


def shares_base(ref: ModelRef, policy: Policy) -> bool:
    """Whether a reward adapter stands on the policy's base; a base of that name with other weights is a UserError."""
    if not ref.adapter or policy.ref is None or ref.base != policy.ref.base:
        return False
    check_base(ref, read_base(ref), str(ref.adapter))
    return True


def reads_alike(theirs: TokenizerSpec, spec: TokenizerSpec) -> bool:
    """Whether two models read a conversation as the same ids: one tokenizer and one template."""
    return theirs.backend == spec.backend and theirs.template == spec.template


def attach_reward(ref: ModelRef, policy: Policy) -> ScalarHead:
    """The reward's adapter on the policy's model, frozen, and its score head."""
    weight = attach_scorer(policy.model, ref.adapter, REWARD)
    width = policy.model.config.get_text_config().hidden_size
    if tuple(weight.shape) != (1, width):
        raise UserError("the reward model's head does not fit its base", where=str(ref.adapter),
                        found=str(list(weight.shape)), expected=f"[1, {width}]", fix="train it again on this base")
    head = ScalarHead(width, weight.dtype)
    head.weight.data.copy_(weight)
    return head.requires_grad_(False).to(policy.device)


def separate_reward(ref: ModelRef, theirs: TokenizerSpec, spec: TokenizerSpec,
                    settings: Any) -> tuple[ModelReward, str]:
    """A reward model beside the policy, whose tokenizer is `spec`, and how answers reach it."""
    scorer = open_scorer(ref, dtype=settings.dtype, device=settings.device,
                         trust_remote_code=settings.trust_remote_code)
    if reads_alike(theirs, spec):
        return ModelReward(scorer, None, ref.name), "answers reach it as they were sampled"
    return (ModelReward(scorer, Renderer(theirs, max_length=1 << 20), ref.name),
            "it has a tokenizer or template of its own: answers reach it as text")
