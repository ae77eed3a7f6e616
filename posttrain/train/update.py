"""One update: packs in, one gradient, one step. Nothing here depends on how the rows were laid into packs."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from ..core import ranks
from ..core.pack import Pack, make_pack
from ..core.seeds import seed_for
from ..core.sequence import Sequence
from ..data.packer import pack_atoms
from .objective import Models, Objective


def lay_packs(atoms: Many[Many[Sequence]], pack_tokens: int) -> list[Pack]:
    """Packs of at most `pack_tokens` that hold these atoms."""
    return [make_pack([s for atom in pack for s in atom], [len(atom) for atom in pack])
            for pack in pack_atoms(atoms, pack_tokens)]


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
    sums: dict[str, torch.Tensor] = {}
    sizes: dict[str, torch.Tensor] = {}
    if models.policy.noise is not None:
        models.policy.noise.update = step
    for number, pack in enumerate(packs):
        torch.manual_seed(seed_for(seed, "dropout", step, number * ranks.world() + ranks.rank()))
        pack = pack.to(models.policy.device)
        for model, needs in models.passes(objective.needs):
            loss, more = objective.loss(model(pack, needs, objective.temperature), pack)
            ((loss * 0 if pack.idle else loss) / denominator).backward()  # an idle one stays connected to the weights
            for name, value in (("loss", loss), *more.items()):
                if isinstance(value, tuple):
                    value, size = value
                    sizes[name] = sizes.get(name, 0) + (0 if pack.idle else size.double())
                sums[name] = sums.get(name, 0) + (0 if pack.idle else value.detach().double())
    own = [*(float(sums[name]) for name in sums), *(float(sizes[name]) for name in sizes)]
    totals = ranks.add_up(own)
    counts = dict(zip(sizes, totals[len(sums):], strict=True))
    return {name: total / size for name, total in zip(sums, totals, strict=False)
            if (size := counts.get(name, denominator))}


@torch.no_grad()
def evaluate(models: Models, objective: Objective, packs: Many[Pack]) -> dict[str, float]:
    """The objective's means over the held-out packs of all processes, in evaluation mode: {loss, units}."""
    model, objective = models.policy.model, objective.judge()
    was_training = model.training
    model.eval()
    total = units = 0.0
    for pack in packs:
        pack = pack.to(models.policy.device)
        loss, _ = objective.loss(models.policy(pack, objective.needs), pack)
        if not pack.idle:
            total += float(loss.double())
            units += float(objective.size(pack).double())
    model.train(was_training)
    total, units = ranks.add_up([total, units])
    return {"loss": total / units if units else float("nan"), "units": units}
