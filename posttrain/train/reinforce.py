"""What PPO, GRPO and online DPO share: collections of sampled answers, their scores, what is logged and resumed."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ..core import ranks
from ..core.config import Settings, users_of
from ..core.errors import UserError
from ..core.pack import Pack
from ..core.seeds import seed_for
from ..data.order import permutation
from .advantages import flat, kl_k1, kl_k3, moments
from .guards import check_guards
from .objective import Models, Objective
from .rollout import Answer
from .update import lay_packs

SAMPLES = 4  # answers per collection that go to samples.jsonl
COLUMNS = ("old", "reference", "entropy", "values", "returns", "advantages", "share", "told")  # that a loss may read


class Reinforce(Objective):
    """Collections of `batch_size` prompts; each is sampled, scored, and trained on in epochs of minibatches.

    The packs of the minibatches are laid once, before the log-probs of the sampling policy are computed by the very
    forward that trains: until its first step the ratio is exactly 1 (test_ppo.py::test_the_first_ratio_is_one).
    """

    rows = frozenset({"prompt"})
    group = 1  # answers to each prompt
    together = 1  # answers that share a pack
    normalizes = False  # scores to their running mean and deviation, before the penalty is taken

    def __init__(self, settings: Settings):
        self.settings = settings
        self.epochs, self.minibatches = settings.ppo_epochs if settings.objective == "ppo" else 1, settings.minibatches
        self.temperature = settings.temperature
        self.state = {"collection": 0, "kl_coef": settings.kl_coef, "scores": [0, 0.0, 0.0], "first": {}}
        self.facts: dict[str, Any] = {}
        self.samples: list[dict[str, Any]] = []
        self.stop_early, self.done, self.prompts = False, 0, 0

    @classmethod
    def of(cls, settings: Settings) -> Reinforce:
        return cls(settings)

    @property
    def updates(self) -> int:
        return self.epochs * self.minibatches

    @property
    def step(self) -> int:
        """Updates made so far."""
        return self.state["collection"] * self.updates + self.done

    def size(self, pack: Pack) -> torch.Tensor:
        return pack.weights_T.sum()

    def collect(self, packs, models: Models) -> Iterator[list[Pack]]:
        began = time.perf_counter()
        self.stop_early = False
        packs = list(packs)
        answers = models.rollout(packs, self.state["collection"], self.group)
        self.facts, self.done = {"rollout_seconds": time.perf_counter() - began}, 0
        self.prompts = round(ranks.add_up([len(answers) / self.group])[0])
        scores = self._judge(answers, models)
        laid = self._lay(answers, packs[0])
        self._columns(laid, models)
        self._tell(answers, scores, [p for batch in laid for p in batch])
        check_guards(self.facts, self.state["first"] or self.facts, self.step)
        self.state["first"] = self.state["first"] or dict(self.facts)
        taught = self._taught(answers, laid, packs[0])
        self.facts["collection_seconds"] = time.perf_counter() - began
        for _ in range(self.epochs):
            for batch in taught:
                if not self.stop_early:
                    yield batch
                    self.done += 1
        self._adapt()
        self.state["collection"] += 1

    def updated(self, means: dict[str, float]) -> None:
        """After an update: the rest of the collection is left out where it moved the policy far enough."""
        limit = self.settings.early_stop_kl
        self.stop_early = limit is not None and means.get("approx_kl", 0.0) > limit
        check_guards(self.facts | means, self.state["first"], self.step + 1)

    def validate(self, held: list[Pack], models: Models) -> dict[str, float]:
        """Mean score of greedy answers to held-out prompts; the loss is its negative."""
        answers = models.rollout(held, 0, greedy=True)
        _, mean, _ = moments(self._judged(models.reward(answers) if answers else [], models))
        stopped, count = ranks.add_up([sum(a.stopped for a in answers), len(answers)])
        return {"eval_loss": -mean, "eval_reward": mean, "eval_stop_rate": stopped / count}

    # -- one collection
    def _judge(self, answers: list[Answer], models: Models) -> list[float]:
        """The scores as the reward gave them; what is learnt from goes into each sequence's facts.

        An answer without a verdict (NaN) stands where the mean is. The penalty is in the units of what is learnt from.
        """
        began = time.perf_counter()
        scores = models.reward(answers) if answers else []
        self.facts["reward_seconds"] = time.perf_counter() - began
        count, mean, squares = self.state["scores"]
        more, found, variance = moments(self._judged(scores, models))
        whole = count + more  # Chan, Golub and LeVeque 1979, eq. 2.1: two sets of numbers as one
        squares += more * variance + (found - mean) ** 2 * count * more / whole
        mean += (found - mean) * more / whole
        self.state["scores"] = [whole, mean, squares]
        spread = max((squares / whole) ** 0.5, 1e-4)
        for answer, score in zip(answers, scores, strict=True):
            score = mean if math.isnan(score) else score
            learnt = (score - mean) / spread if self.normalizes else score
            learnt -= 0.0 if answer.stopped else self.settings.missing_eos_penalty
            answer.sequence.facts = {"score": learnt}
        return scores

    def _judged(self, scores: list[float], models: Models) -> torch.Tensor:
        """The scores that are one; where a reward may have no verdict, the share that has none is told."""
        known = [s for s in scores if not math.isnan(s)]
        asked, answered = ranks.add_up([len(scores), len(known)])
        if not answered:
            raise UserError("the reward has no verdict on any answer of a collection", where="reward",
                            found=f"{self.settings.reward}: {round(asked)} replies without a clear rating",
                            expected="a rating in double square brackets, such as [[5]], at the end of a reply",
                            fix="look at what the judge replies: posttrain judge writes it down; or take another judge")
        if getattr(models.reward, "abstains", False):
            self.facts["unjudged"] = 1 - answered / asked
        return torch.tensor(known, dtype=torch.float64)

    def _lay(self, answers: list[Answer], prompt: Pack) -> list[list[Pack]]:
        """Packs of each minibatch; whole groups are dealt, in an order of the collection's own, alike in any process.

        A process that has no answer of a minibatch takes part in its update with an idle pack: one of its own of
        another, or, where it has none at all, the `prompt` that it was given (test_ranks.py, with one prompt).
        """
        own = {a.number // self.group for a in answers}
        there = ranks.add_up([float(n in own) for n in range(self.prompts)])
        order = [n for n in permutation(self.prompts, seed_for(self.settings.seed, "minibatches"), "collection",
                                        self.state["collection"]) if there[n]]
        laid, size = [], self.together
        for part in np.array_split(order, min(self.minibatches, len(order)) or 1):
            mine = set(part.tolist())
            own = [a.sequence for a in sorted(answers, key=lambda a: a.number) if a.number // self.group in mine]
            atoms = [own[i:i + size] for i in range(0, len(own), size)]
            laid.append(lay_packs(atoms, self.settings.pack_tokens) if atoms else [])
        spare = min((p for batch in laid for p in batch), key=lambda p: p.bounds[-1], default=self._nothing(prompt))
        return [batch or [replace(spare, idle=True)] for batch in laid if order]

    def _nothing(self, prompt: Pack) -> Pack:
        """What a process without an answer runs for company: a prompt, with columns of zeros."""
        zero = torch.zeros(len(prompt.ids_T))
        return replace(prompt, weights_T=zero + 1, columns=dict.fromkeys(COLUMNS, zero))

    def _taught(self, answers: list[Answer], laid: list[list[Pack]], prompt: Pack) -> list[list[Pack]]:
        """The packs of each update, once everything is measured; here: those that were measured."""
        return laid

    def rehearsed(self, packs: list[Pack], models: Models) -> list[Pack]:
        """Made-up packs as a collection would leave them, and no trace of it."""
        for pack in packs:
            pack.columns["score"] = pack.columns["advantage"] = torch.zeros(len(pack.lengths), dtype=torch.float64)
        self._columns([packs], models)
        self.facts = {}
        return packs

    def _columns(self, laid: list[list[Pack]], models: Models) -> None:
        raise NotImplementedError

    @torch.no_grad()
    def _measure(self, pack: Pack, models: Models) -> dict[str, torch.Tensor]:
        """[K] columns at the answers' tokens: log-probs of policy and reference, entropy."""
        here = pack.to(models.policy.device)
        where = here.weights_T != 0
        out = models.policy(here, {"logprobs", "entropy"}, self.temperature)
        reference = models.reference(here, {"logprobs"}, self.temperature)
        return {"old": out.logprobs_T[where], "entropy": out.entropy_T[where], "reference": reference.logprobs_T[where]}

    # -- what is told
    def _tell(self, answers: list[Answer], scores: list[float], packs: list[Pack]) -> None:
        packs = [p for p in packs if not p.idle]
        old, reference, entropy = (flat([p.columns[n][p.weights_T != 0] for p in packs]).double()
                                   for n in ("old", "reference", "entropy"))
        by_number = {a.number: a.logprobs for a in answers}
        sampled = torch.tensor([x for p in packs for number in p.numbers for x in by_number[number]]).double()
        _, reward, variance = moments(torch.tensor([s for s in scores if not math.isnan(s)], dtype=torch.float64))
        count, tokens, stopped, k1, k3, nats, gap = ranks.add_up([
            len(answers), len(old), sum(a.stopped for a in answers), float(kl_k1(old, reference).sum()),
            float(kl_k3(old, reference).sum()), float(entropy.sum()), float((sampled - old).abs().sum())])
        self.facts |= {
            "reward": reward, "reward_std": variance ** 0.5, "kl": k1 / count, "k1": k1 / tokens, "k3": k3 / tokens,
            "entropy": nats / tokens, "answer_tokens": tokens / count,
            "stop_rate": stopped / count, "sampler_gap": gap / tokens}  # nats; rounding, where both see one policy
        if self.settings.objective in users_of("kl_coef"):
            self.facts["kl_coef"] = self.state["kl_coef"]
        order = np.argsort([a.row.origin for a in answers], kind="stable")[:SAMPLES]
        self.samples = [{"prompt": answers[i].row.messages[-1].get("content"), "answer": answers[i].text,
                         "score": None if math.isnan(scores[i]) else scores[i], "stopped": answers[i].stopped,
                         "origin": answers[i].row.origin} for i in order]

    def _adapt(self) -> None:
        """kl_coef ← kl_coef (1 + 0.1 clip(KL / target − 1, ±0.2))                (Ziegler et al. 2019, sec. 2.2)"""
        target = self.settings.kl_target
        if target is not None:
            error = min(max(self.facts["kl"] / target - 1, -0.2), 0.2)
            self.state["kl_coef"] *= 1 + 0.1 * error

