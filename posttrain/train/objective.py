"""The one abstraction: columns in, one summed loss out. The loop owns scaling, accumulation and logging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core.config import Settings
from ..core.pack import Pack
from ..model.forward import Forward, Outputs

Logged = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Models:
    """The models an objective may ask in `collect`; supervised fine-tuning has a policy alone."""

    policy: Forward


class Objective:
    """What is learnt from a pack. A new objective is one file.

    `size` and `loss` see one pack; the loop divides the sum of all losses of an update once, by the sum of all sizes,
    so neither may take a mean (test_invariance.py keeps every objective to that).
    """

    rows: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]]

    @classmethod
    def of(cls, settings: Settings) -> Objective:
        """The objective with the keys it uses; here: none."""
        return cls()

    def size(self, pack: Pack) -> torch.Tensor:
        """Units this pack adds to the denominator, a scalar."""
        raise NotImplementedError

    def collect(self, packs: Iterable[Pack], models: Models) -> Iterator[list[Pack]]:
        """The packs of each update, without gradients; here: one update, nothing added."""
        yield list(packs)

    def loss(self, out: Outputs, pack: Pack) -> tuple[torch.Tensor, dict[str, Logged]]:
        """The SUM over the pack's units, and sums to be logged: each divided by the same denominator, or, given as a
        pair (sum, size), by the sum of its own sizes."""
        raise NotImplementedError

    def judge(self) -> Objective:
        """What held-out rows are measured by: this objective without what only training adds to its loss."""
        return self
