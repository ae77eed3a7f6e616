"""The loss of held-out answers, in nats per trained token."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from ..core.pack import make_pack
from ..core.sequence import Sequence
from ..data.packer import pack_sequences
from ..model.forward import Forward
from ..train.objective import Models
from ..train.objectives.sft import SFT
from ..train.update import evaluate


@dataclass(frozen=True, slots=True)
class AnswerLoss:
    """Nats per trained token, over this many of them; perplexity = exp(loss)."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss)


def answer_loss(forward: Forward, sequences: Iterable[Sequence], pack_tokens: int = 4096) -> AnswerLoss:
    """The training loss of these sequences, without gradient; packing changes memory, never the result.

    (test_held_out.py::test_layout_changes_nothing)
    """
    atoms = [[s] for s in sequences]
    packs = [make_pack(p) for p in pack_sequences(atoms, max(pack_tokens, max(len(s) for a in atoms for s in a)))]
    found = evaluate(Models(forward), SFT(), packs)
    return AnswerLoss(found["loss"], sum(s.trained for a in atoms for s in a))
