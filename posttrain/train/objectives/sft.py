"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from __future__ import annotations

from ..objective import Objective


class SFT(Objective):
    """loss = Σ_t w_t · (−log p(y_t | y_<t)) / Σ_t w_t, over every token of the update; nats per token.

    Pretraining is the same over text rows, where every w is 1.
    """

    rows = frozenset({"conversation", "text"})
    needs = frozenset({"logprobs"})

    def size(self, pack):
        return pack.weights_T.sum()

    def loss(self, out, pack):
        return -(out.logprobs_T * pack.weights_T).sum(), {}
