"""Sequences of a pack as answers: what each sums to, and which two of an atom are compared."""

from __future__ import annotations

import torch

from ..core.pack import Pack
from .objective import Objective


def answer_sums(x_T: torch.Tensor, pack: Pack) -> torch.Tensor:
    """Sum over the trained tokens of each sequence: [T] -> [S] float64.

    Each sequence is summed for itself, so its sum does not depend on what else lies in the pack.
    """
    return torch.stack([x.sum() for x in (x_T.double() * pack.weights_T).split(pack.lengths)])


def answer_lengths(pack: Pack) -> torch.Tensor:
    """Trained tokens of each sequence, [S] float64."""
    return answer_sums(torch.ones_like(pack.weights_T), pack)


def pairs(pack: Pack) -> tuple[list[int], list[int]]:
    """Sequence numbers of the better and the worse answer of each pair, [P] and [P].

    Every two answers of an atom whose ranks differ are a pair (Ouyang et al. 2022, section 3.5, without its division
    by the number of pairs: here a pair counts as one).
    """
    better, worse, rank = [], [], pack.columns["rank"].tolist()
    for a, b in zip(pack.atoms, pack.atoms[1:], strict=False):
        for i in range(a, b):
            for j in range(a, b):
                if rank[i] > rank[j]:
                    better.append(i)
                    worse.append(j)
    return better, worse


class PairObjective(Objective):
    """What objectives that compare answers share: they read pairs, and a pair is their unit."""

    rows = frozenset({"pair"})
    needs = frozenset({"logprobs"})

    def size(self, pack):
        return torch.tensor(float(len(pairs(pack)[0])))

    def rehearsed(self, packs, models):
        """Of each atom the first answer is the better one."""
        for pack in packs:
            first = torch.zeros(len(pack.lengths), dtype=torch.float64)
            first[pack.atoms[:-1]] = 1.0
            pack.columns |= {"rank": first, "margin": torch.zeros_like(first), "reference": torch.zeros_like(first)}
        return packs
