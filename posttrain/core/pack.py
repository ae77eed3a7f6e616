"""The one data shape of a forward: a flat stream of tokens, several sequences, no padding.

Shape letters of the whole package: T packed tokens, S sequences, P pairs, V vocabulary, D width, H heads,
L one sequence's length, K trained positions of a pack.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from .sequence import Row, Sequence


@dataclass(slots=True)
class Pack:
    """What one forward sees, shifted once: position t predicts `targets_T[t]`, which counts `weights_T[t]`.

    ids_T, positions_T, targets_T [T] int64; weights_T [T] float32 (0 at each sequence's last position);
    bounds [S+1] ints: sequence s is ids_T[bounds[s]:bounds[s+1]]; origins, sources, numbers [S]; atoms [A+1] ints:
    atom a is the sequences atoms[a] … atoms[a+1]-1; `columns` holds the sequences' facts ([S] float64) and whatever an
    objective's `collect` adds, aligned with tokens ([T]) or sequences ([S]); rows [S] are those of prompts
    that are to be answered. An `idle` pack is run so that every process makes as many forwards, and counts nothing.
    """

    ids_T: torch.Tensor
    positions_T: torch.Tensor
    targets_T: torch.Tensor
    weights_T: torch.Tensor
    bounds: list[int]
    origins: list[str]
    sources: list[int]
    atoms: list[int]
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)
    rows: list[Row | None] = field(default_factory=list)
    idle: bool = False

    @property
    def lengths(self) -> list[int]:
        return [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]

    def to(self, device: torch.device | str) -> Pack:
        move = {k: v.to(device) for k, v in self.columns.items()}
        return replace(self, ids_T=self.ids_T.to(device), positions_T=self.positions_T.to(device), columns=move,
                       targets_T=self.targets_T.to(device), weights_T=self.weights_T.to(device))


def make_pack(sequences: Many[Sequence], atoms: Many[int] | None = None) -> Pack:
    """Lay sequences end to end: [L_1], …, [L_S] -> one Pack with T = sum of L.

    `atoms` says how many sequences each atom has, by default one. The shift happens here and nowhere else: target t is
    token t+1 of the same sequence, weight t is that token's.
    """
    bounds = np.concatenate([[0], np.cumsum([len(s) for s in sequences])]).astype(int).tolist()
    ids = np.concatenate([s.ids for s in sequences]).astype(np.int64)
    weights = np.concatenate([s.weights for s in sequences]).astype(np.float32)
    targets, shifted = np.roll(ids, -1), np.roll(weights, -1)
    ends = np.asarray(bounds[1:]) - 1
    targets[ends], shifted[ends] = ids[ends], 0.0
    positions = np.concatenate([np.arange(len(s), dtype=np.int64) for s in sequences])
    as_tensor = torch.from_numpy
    starts = np.concatenate([[0], np.cumsum(atoms or [1] * len(sequences))]).astype(int).tolist()
    facts = {name: torch.tensor([s.facts[name] for s in sequences], dtype=torch.float64) for name in sequences[0].facts}
    return Pack(as_tensor(ids), as_tensor(positions), as_tensor(targets), as_tensor(shifted), bounds,
                [s.origin for s in sequences], [s.source for s in sequences], starts, facts,
                [s.number for s in sequences], [s.row for s in sequences])
