"""An update's rows over the processes of a run: shares alike in tokens, and as many packs everywhere."""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ..core import ranks
from ..core.pack import Pack
from ..core.sequence import Sequence
from ..data.packer import deal, pack_atoms
from .update import fitting, lay_packs

if TYPE_CHECKING:
    from .optim import MasterAdamW

BUCKET = 1 << 24  # numbers of one all-reduce: large enough for the bandwidth, little beside a model


def share_packs(atoms: Many[Many[Sequence]], pack_tokens: int) -> list[Pack]:
    """This process's packs of an update. Every process knows all of its rows, so nothing is sent.

    A process with fewer packs than another makes up for it with idle ones, or the others' collectives would wait for
    it for ever (test_ranks.py).
    """
    if ranks.world() == 1:
        return lay_packs(atoms, pack_tokens)
    atoms = fitting(atoms, pack_tokens)
    shares = deal(atoms, ranks.world())
    most = max(len(pack_atoms(part, pack_tokens)) for part in shares)
    smallest = min(atoms, key=lambda atom: sum(len(s) for s in atom))
    return _filled(lay_packs(shares[ranks.rank()], pack_tokens), most, lay_packs([smallest], pack_tokens)[0])


def even_packs(packs: list[Pack]) -> list[Pack]:
    """The packs that an objective made of its share, and idle ones up to the most that any process has."""
    if ranks.world() == 1:
        return packs
    most = int(ranks.largest([len(packs)])[0])
    return _filled(packs, most, min(packs, key=lambda pack: pack.bounds[-1]))


def count_tokens(packs: Many[Pack]) -> tuple[int, int]:
    """(tokens, trained tokens) of an update over all processes."""
    real = [pack for pack in packs if not pack.idle]
    tokens, trained = ranks.add_up([sum(len(pack.ids_T) for pack in real),
                                    sum(int(pack.weights_T.count_nonzero()) for pack in real)])
    return int(tokens), int(trained)


def _filled(packs: list[Pack], count: int, smallest: Pack) -> list[Pack]:
    return packs + [replace(smallest, idle=True)] * (count - len(packs))


@torch.no_grad()
def sum_gradients(optimizer: MasterAdamW, which: Many[int] | None = None) -> None:
    """Give every process the sum of all their gradients, float32 or wider: each holds a share of one global sum.

    `which` parameters are meant, by default all; one process has the same ones as another.
    One that some process has not reached (an expert that none of its tokens took) counts there as zero.
    """
    if ranks.world() == 1:
        return
    which = range(len(optimizer.named)) if which is None else which
    reached = ranks.largest([float(optimizer.gradient(i) is not None) for i in which])
    bucket: list[int] = []
    size = 0
    for i in (i for i, by_any in zip(which, reached, strict=True) if by_any):
        if bucket and (size > BUCKET or _wide(optimizer, i) != _wide(optimizer, bucket[0])):
            _sum(optimizer, bucket)
            bucket, size = [], 0
        bucket.append(i)
        size += optimizer.named[i][1].numel()
    if bucket:
        _sum(optimizer, bucket)


def _wide(optimizer: MasterAdamW, i: int) -> torch.dtype:
    return torch.promote_types(optimizer.named[i][1].dtype, torch.float32)


def _sum(optimizer: MasterAdamW, bucket: list[int]) -> None:
    parameters = [optimizer.named[i][1] for i in bucket]
    wide = _wide(optimizer, bucket[0])
    found = [optimizer.gradient(i) for i in bucket]
    flat = torch.cat([p.new_zeros(p.numel(), dtype=wide) if g is None else g.reshape(-1).to(wide)
                      for p, g in zip(parameters, found, strict=True)])
    torch.distributed.all_reduce(flat)
    for i, p, part in zip(bucket, parameters, flat.split([p.numel() for p in parameters]), strict=True):
        optimizer.set_gradient(i, part.view(p.shape))
