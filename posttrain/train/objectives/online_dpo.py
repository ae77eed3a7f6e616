"""Online DPO: the policy answers twice, a reward says which answer is better, and DPO's loss learns from the two."""

from __future__ import annotations

import math

import numpy as np
import torch

from ...core.pack import Pack
from ..advantages import moments
from ..pairs import answer_sums
from ..reinforce import Reinforce
from ..rollout import Answer, spread
from .dpo import DPO


class OnlineDPO(Reinforce):
    """loss = Σ_p ℓ(h_p) / P,   DPO's, on pairs p of answers that the policy itself has just sampled.

    The answer with the higher score is the better one, and the reference is the policy as it started (Guo et al. 2024,
    "Direct Language Model Alignment from Online AI Feedback", algorithm 1). Two answers whose scores are equal, that
    are the same, or of which one has no verdict compare nothing: the updates of a collection are made of the other
    pairs alone (test_online_dpo.py::test_equal_scores_are_no_pair). At policy = reference the loss is ln 2.
    """

    group = together = 2
    normalizes = True  # changes no order; the penalty is in deviations of the scores
    needs = frozenset({"logprobs"})

    def __init__(self, settings):
        super().__init__(settings)
        self.pairwise = DPO.of(settings)

    def size(self, pack):
        return self.pairwise.size(pack)

    def loss(self, out, pack):
        return self.pairwise.loss(out, pack)

    def rehearsed(self, packs, models):
        return self.pairwise.rehearsed(packs, models)

    def _judge(self, answers, models):
        scores = super()._judge(answers, models)
        for place, (answer, score) in enumerate(zip(answers, scores, strict=True)):
            rank = score if math.isnan(score) else answer.sequence.facts["score"]
            answer.sequence.facts = {"rank": rank, "place": float(place)}
        told = np.array([not _compares(*pair) for pair in _pairs(answers)], np.float64)
        self.facts["idle_groups"] = moments(torch.from_numpy(told))[1]
        return scores

    def _columns(self, laid, models):
        for pack in (pack for batch in laid for pack in batch if not pack.idle):
            for name, column_K in self._measure(pack, models).items():
                pack.columns[name] = spread(column_K.cpu(), pack)

    def _taught(self, answers, laid, prompt):
        """The pairs, each with what the reference gave its answers, in minibatches of their own."""
        for pack in (pack for batch in laid for pack in batch if not pack.idle):
            sums = answer_sums(pack.columns["reference"], pack).tolist()
            for place, logprob in zip(pack.columns["place"].long().tolist(), sums, strict=True):
                answers[place].sequence.facts["reference"] = logprob
        kept = [answer for pair in _pairs(answers) if _compares(*pair) for answer in pair]
        return self._lay(kept, prompt) or [[]]

    def _nothing(self, prompt: Pack) -> Pack:
        made = super()._nothing(prompt)
        zero = torch.zeros(len(prompt.lengths), dtype=torch.float64)
        made.columns = {"rank": zero, "reference": zero}
        return made


def _pairs(answers: list[Answer]) -> list[tuple[Answer, Answer]]:
    return list(zip(answers[::2], answers[1::2], strict=True))


def _compares(one: Answer, two: Answer) -> bool:
    """Whether one of two answers is better, and not the same answer."""
    a, b = one.sequence, two.sequence
    return (a.facts["rank"] > b.facts["rank"] or a.facts["rank"] < b.facts["rank"]) and not np.array_equal(a.ids, b.ids)
