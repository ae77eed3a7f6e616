"""What PPO and GRPO share: collections of sampled answers, their scores, what is logged, guarded and resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from ..core.config import Settings
from ..core.pack import Pack
from ..core.seeds import seed_for
from ..data.order import permutation
from .advantages import kl_k1, kl_k3
from .guards import check_guards
from .objective import Models, Objective
from .rollout import Answer
from .update import lay_packs

SAMPLES = 4  # answers per collection that go to samples.jsonl


class Reinforce(Objective):
    """Collections of `batch_size` prompts; each is sampled, scored, and trained on in epochs of minibatches.

    The packs of the minibatches are laid once, before the log-probs of the sampling policy are computed by the very
    forward that trains: until its first step the ratio is exactly 1 (test_ppo.py::test_the_first_ratio_is_one).
    """

    rows = frozenset({"prompt"})
    group = 1

    def __init__(self, settings: Settings):
        self.settings = settings
        self.epochs, self.minibatches = settings.ppo_epochs if settings.objective == "ppo" else 1, settings.minibatches
        self.temperature = settings.temperature
        self.state = {"collection": 0, "kl_coef": settings.kl_coef, "scores": [0, 0.0, 0.0], "first": {}}
        self.facts: dict[str, Any] = {}
        self.samples: list[dict[str, Any]] = []
        self.stop_early, self.done = False, 0

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
        answers = models.rollout(packs, self.state["collection"], self.group)
        self.facts, self.done = {"rollout_seconds": time.perf_counter() - began}, 0
        scores = self._judge(answers, models)
        laid = self._lay(answers)
        self._columns(laid, models)
        self._tell(answers, scores, [p for batch in laid for p in batch])
        check_guards(self.facts, self.state["first"] or self.facts, self.step)
        self.state["first"] = self.state["first"] or dict(self.facts)
        self.facts["collection_seconds"] = time.perf_counter() - began
        for _ in range(self.epochs):
            for batch in laid:
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
        mean = float(np.mean(models.reward(answers)))
        return {"eval_loss": -mean, "eval_reward": mean, "eval_stop_rate": _mean(a.stopped for a in answers)}

    # -- one collection
    def _judge(self, answers: list[Answer], models: Models) -> list[float]:
        """The scores as the reward gave them; what is learnt from goes into each sequence's facts."""
        began = time.perf_counter()
        scores = models.reward(answers)
        self.facts["reward_seconds"] = time.perf_counter() - began
        count, mean, squares = self.state["scores"]
        for score in scores:  # Welford 1962
            count, before = count + 1, mean
            mean += (score - mean) / count
            squares += (score - before) * (score - mean)
        self.state["scores"] = [count, mean, squares]
        spread = max((squares / count) ** 0.5, 1e-4)
        for answer, score in zip(answers, scores, strict=True):
            learnt = (score - mean) / spread if self.settings.normalize_reward else score
            learnt -= 0.0 if answer.stopped else self.settings.missing_eos_penalty
            answer.sequence.facts = {"score": learnt}
        return scores

    def _lay(self, answers: list[Answer]) -> list[list[Pack]]:
        """Packs of each minibatch; whole groups are dealt, in an order of the collection's own."""
        seed, n = self.settings.seed, len(answers) // self.group
        order = permutation(n, seed_for(seed, "minibatches"), "collection", self.state["collection"])
        deals = [part for part in np.array_split(order, self.minibatches) if len(part)]
        return [lay_packs([[answers[int(p) * self.group + i].sequence] for p in part for i in range(self.group)],
                          self.settings.pack_tokens) for part in deals]

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
        old, reference, entropy = (torch.cat([p.columns[n][p.weights_T != 0] for p in packs]).double()
                                   for n in ("old", "reference", "entropy"))
        sampled = torch.tensor([x for a in answers for x in a.logprobs]).double()
        k1 = kl_k1(old, reference)
        tokens = sum(a.length for a in answers)
        self.facts |= {
            "reward": float(np.mean(scores)), "reward_std": float(np.std(scores)), "kl": float(k1.sum()) / len(answers),
            "k1": float(k1.mean()), "k3": float(kl_k3(old, reference).mean()), "entropy": float(entropy.mean()),
            "kl_coef": self.state["kl_coef"], "answer_tokens": tokens / len(answers),
            "stop_rate": _mean(a.stopped for a in answers),
            "sampler_gap": abs(float(sampled.mean() - old.mean()))}  # nats; rounding, where both see one policy
        order = np.argsort([a.row.origin for a in answers], kind="stable")[:SAMPLES]
        self.samples = [{"prompt": answers[i].row.messages[-1].get("content"), "answer": answers[i].text,
                         "score": scores[i], "stopped": answers[i].stopped, "origin": answers[i].row.origin}
                        for i in order]

    def _adapt(self) -> None:
        """kl_coef ← kl_coef (1 + 0.1 clip(KL / target − 1, ±0.2))                (Ziegler et al. 2019, sec. 2.2)"""
        target = self.settings.kl_target
        if target is not None:
            error = min(max(self.facts["kl"] / target - 1, -0.2), 0.2)
            self.state["kl_coef"] *= 1 + 0.1 * error


def _mean(values) -> float:
    values = [float(v) for v in values]
    return sum(values) / len(values)


