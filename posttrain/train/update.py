"""One update: packs in, one gradient, one step. Nothing here depends on how the rows were laid into packs."""

from __future__ import annotations

from collections.abc import Sequence as Many
from itertools import combinations

import torch

from ..core import ranks
from ..core.pack import Pack, make_pack
from ..core.seeds import seed_for
from ..core.sequence import Sequence
from ..data.packer import pack_atoms
from .objective import Logged, Models, Objective


def lay_packs(atoms: Many[Many[Sequence]], pack_tokens: int) -> list[Pack]:
    """Packs of at most `pack_tokens` that hold these atoms."""
    return [make_pack([s for atom in pack for s in atom], [len(atom) for atom in pack])
            for pack in pack_atoms(fitting(atoms, pack_tokens), pack_tokens)]


def fitting(atoms: Many[Many[Sequence]], pack_tokens: int) -> list[Many[Sequence]]:
    """The same atoms, those that no pack holds (a ranking of many answers) taken apart into their pairs."""
    return [part for atom in atoms for part in (
        [atom] if sum(map(len, atom)) <= pack_tokens else combinations(atom, 2))]


class Sums:
    """Sums of losses and of what is logged, over packs; means over all processes at the end."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}
        self.sizes: dict[str, torch.Tensor] = {}

    def add(self, pack: Pack, loss: torch.Tensor, more: dict[str, Logged]) -> None:
        """One pack's; an idle one counts nothing, but its names."""
        for name, value in (("loss", loss), *more.items()):
            if isinstance(value, tuple):
                value, size = value
                self.sizes[name] = self.sizes.get(name, 0) + (0 if pack.idle else size.double())
            self.sums[name] = self.sums.get(name, 0) + (0 if pack.idle else value.detach().double())

    def means(self, denominator: float) -> dict[str, float]:
        """Each sum by the denominator, or by its own sizes; left out where that is 0."""
        totals = ranks.add_up([*map(float, self.sums.values()), *map(float, self.sizes.values())])
        counts = dict(zip(self.sizes, totals[len(self.sums):], strict=True))
        return {name: total / size for name, total in zip(self.sums, totals, strict=False)
                if (size := counts.get(name, denominator))}


def accumulate(models: Models, objective: Objective, packs: Many[Pack], seed: int, step: int) -> dict[str, float]:
    """Backward over all packs of an update -> the update's means by name (`loss`, …), in the objective's units.

    The sum of losses is divided once, by the sum of sizes over all packs of all processes, known before the first
    backward; each process keeps the gradient of its own packs. What is logged with a size of its own is divided by
    that, and left out where it is 0.
    """
    own = sum(objective.size(pack).double().item() for pack in packs if not pack.idle)
    denominator, = ranks.add_up([own])
    if not denominator:
        raise AssertionError("an update that trains nothing reached the model")
    sums = Sums()
    if models.policy.noise is not None:
        models.policy.noise.update = step
    for number, pack in enumerate(packs):
        torch.manual_seed(seed_for(seed, "dropout", step, number * ranks.world() + ranks.rank()))
        pack = pack.to(models.policy.device)
        for model, needs in models.passes(objective.needs):
            loss, more = objective.loss(model(pack, needs, objective.temperature), pack)
            ((loss * 0 if pack.idle else loss) / denominator).backward()  # an idle one stays connected to the weights
            sums.add(pack, loss, more)
            del loss, more  # their graph: its nodes lie between the activations that they kept, and hold them apart
    return sums.means(denominator)


@torch.no_grad()
def evaluate(models: Models, objective: Objective, packs: Many[Pack]) -> dict[str, float]:
    """The objective's means over the held-out packs of all processes, in evaluation mode: {units, loss, and what else
    it logs}."""
    model, objective = models.policy.model, objective.judge()
    was_training = model.training
    model.eval()
    sums = Sums()
    units, = ranks.add_up([sum(float(objective.size(pack).double()) for pack in packs if not pack.idle)])
    for pack in packs:
        pack = pack.to(models.policy.device)
        sums.add(pack, *objective.loss(models.policy(pack, objective.needs), pack))
    model.train(was_training)
    return {"loss": float("nan"), **sums.means(units), "units": units}
