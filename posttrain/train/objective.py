"""The one abstraction: columns in, one summed loss out. The loop owns scaling, accumulation and logging."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..core.config import Settings
from ..core.pack import Pack
from ..core.sequence import Sequence
from ..model.forward import Forward, Outputs

Logged = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class Models:
    """The models an objective may ask in `collect`; supervised fine-tuning has a policy alone.

    `reference` is the policy as it started (train/reference.py), for objectives that are `referenced`. Each is called
    as a Forward is; `reward` turns answers into scores, `rollout` prompts into answers.
    """

    policy: Forward
    reference: Any = None
    critic: Any = None
    reward: Any = None
    rollout: Any = None

    def passes(self, needs: frozenset[str]) -> list[tuple[Any, frozenset[str]]]:
        """Which model gives what: a critic of its own fills the values, in a forward and backward of their own.

        Their parameters are disjoint, so the gradient is that of the sum, and only one of them has its activations in
        memory at a time (test_ppo.py::test_two_passes_are_one_gradient).
        """
        if self.critic is None or "values" not in needs:
            return [(self.policy, needs)]
        rest = needs - {"values"}
        return [*([(self.policy, rest)] if rest else []), (self.critic, frozenset({"values"}))]


class Objective:
    """What is learnt from a pack. A new objective is one file.

    `size` and `loss` see one pack; the loop divides the sum of all losses of an update once, by the sum of all sizes,
    so neither may take a mean (test_invariance.py keeps every objective to that).
    """

    rows: ClassVar[frozenset[str]]
    needs: ClassVar[frozenset[str]]
    updates: int = 1  # optimizer updates of one batch of rows
    temperature: float = 1.0  # divides the logits of the policy's forwards
    state: ClassVar[dict[str, Any]] = {}  # what a checkpoint keeps besides weights
    facts: ClassVar[dict[str, float]] = {}  # joins each update's metrics
    samples: ClassVar[list[dict[str, Any]]] = []  # what a batch leaves in samples.jsonl
    referenced: bool = False

    @classmethod
    def of(cls, settings: Settings) -> Objective:
        """The objective with the keys it uses; here: none."""
        return cls()

    def size(self, pack: Pack) -> torch.Tensor:
        """Units this pack adds to the denominator, a scalar."""
        raise NotImplementedError

    def arrange(self, atoms: list[list[Sequence]]) -> list[list[Sequence]]:
        """The atoms of an update as they are to be packed, before they are dealt to processes; here: as they come."""
        return atoms

    def collect(self, packs: Iterable[Pack], models: Models) -> Iterator[list[Pack]]:
        """The packs of each update, without gradients; here: one update, nothing added."""
        yield list(packs)

    def updated(self, means: dict[str, float]) -> None:
        """After each update, its means: the objective may raise, or leave out the rest of what `collect` yields."""

    def validate(self, held: list[Pack], models: Models) -> dict[str, float]:
        """What held-out rows show, `eval_loss` among it; here nothing, and the mean loss is taken."""
        return {}

    def rehearsed(self, packs: list[Pack], models: Models) -> list[Pack]:
        """The packs of a made-up update, every token weighing 1, with the columns that `loss` reads."""
        return next(iter(self.collect(packs, models)))

    def held(self, packs: list[Pack], models: Models) -> list[Pack]:
        """Held-out packs with the columns that the loss reads, before the first update; here: as they are."""
        return packs

    def loss(self, out: Outputs, pack: Pack) -> tuple[torch.Tensor, dict[str, Logged]]:
        """The SUM over the pack's units, and sums to be logged: each divided by the same denominator, or, given as a
        pair (sum, size), by the sum of its own sizes."""
        raise NotImplementedError

    def judge(self) -> Objective:
        """What held-out rows are measured by: this objective without what only training adds to its loss."""
        return self
