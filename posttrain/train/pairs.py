"""Sequences of a pack as answers: what each sums to, and which two of an atom are compared."""

from __future__ import annotations

import torch

from ..core.pack import Pack


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


def make_pairs_up(packs: list[Pack]) -> list[Pack]:
    """Packs of a made-up update with the columns of pairs: of each atom the first answer is the better one."""
    for pack in packs:
        first = torch.zeros(len(pack.lengths), dtype=torch.float64)
        first[pack.atoms[:-1]] = 1.0
        pack.columns |= {"rank": first, "margin": torch.zeros_like(first), "reference": torch.zeros_like(first)}
    return packs


def pair_count(pack: Pack) -> torch.Tensor:
    """How many pairs a pack holds, a scalar."""
    return torch.tensor(float(len(pairs(pack)[0])))
