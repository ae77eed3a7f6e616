"""The loss of held-out answers, in nats per trained token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from ..core.pack import make_pack
from ..core.sequence import Sequence
from ..data.packer import pack_sequences
from ..model.forward import Forward


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """A sum of nats over a count of trained tokens.

    loss = nats / tokens,  perplexity = exp(loss)
    """

    nats: float
    tokens: int

    @property
    def loss(self) -> float:
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


@torch.no_grad()
def answer_loss(forward: Forward, sequences: Iterable[Sequence], pack_tokens: int = 4096) -> AnswerLoss:
    """Weighted negative log-likelihood of sequences; packing changes memory, never the result.

        nats = -Σ_t w_t log p(y_t | y_<t),   tokens = #{t: w_t ≠ 0}
    (test_nll.py::test_layout_changes_nothing).
    """
    atoms = [[s] for s in sequences]
    nats, tokens = 0.0, 0
    for pack_atoms in pack_sequences(atoms, pack_tokens):
        pack = make_pack(pack_atoms).to(forward.device)
        out = forward(pack, {"logprobs"})
        nats -= float((out.logprobs_T.double() * pack.weights_T).sum())
        tokens += int((pack.weights_T != 0).sum())
    return AnswerLoss(nats, tokens)
