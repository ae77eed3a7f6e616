"""Kahneman–Tversky optimization: from answers that are called good or bad, each for itself."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import torch

from ...core import ranks
from ...core.pack import Pack
from ...core.sequence import Sequence
from ..objective import Objective
from ..pairs import answer_sums
from ..update import evaluate


class KTO(Objective):
    """loss_i = w (1 − σ(±β (r_i − z))),   mean over answers i; + for good ones, − for bad ones.

    r_i = log π(y_i|x_i) − log π_ref(y_i|x_i), and z = max(0, mean_i of log π(y_j|x_i) − log π_ref(y_j|x_i)) over all
    rows of the update, on all processes, j being a row after i with another prompt (Ethayarajh et al. 2024, eq. 7 and
    section 4.1): each prompt with an answer to something else estimates how far the policy has moved. No gradient flows
    through z, and where all prompts of an update are the same it is 0.
    """

    rows = frozenset({"label"})
    needs = frozenset({"logprobs"})
    referenced = True

    def __init__(self, beta: float = 0.1, good: float = 1.0, bad: float = 1.0):
        self.beta, self.good, self.bad = beta, good, bad

    @classmethod
    def of(cls, settings):
        return cls(settings.beta, settings.desirable_weight, settings.undesirable_weight)

    def size(self, pack):
        return torch.tensor(float(len(pack.lengths))) - pack.columns["mismatch"].sum().cpu()

    def arrange(self, atoms):
        """The rows and, for z, each prompt with an answer to another one: where there is no other, the rows alone."""
        rows = [s for atom in atoms for s in atom]
        for s in rows:
            s.facts = {**s.facts, "mismatch": 0.0}
        return [[own] if other is None else [own, _mismatch(own, other, len(rows) + i)]
                for i, (own, other) in enumerate(zip(rows, _others(rows), strict=True))]

    def collect(self, packs, models):
        yield self._with_z(self.held(list(packs), models), models)

    def held(self, packs, models):
        for pack in packs:
            pack.columns["reference"] = models.reference.answers(pack)
        return packs

    def validate(self, held, models):
        found = evaluate(models, self, self._with_z(held, models))
        return {f"eval_{name}": value for name, value in found.items() if name != "units"}

    def rehearsed(self, packs, models):
        for pack in packs:
            zero = torch.zeros(len(pack.lengths), dtype=torch.float64)
            pack.columns |= {"label": zero, "reference": zero, "mismatch": zero, "z": zero}
        return packs

    @torch.no_grad()
    def _with_z(self, packs: list[Pack], models) -> list[Pack]:
        """The packs without the mismatched answers, and with what those show: z, the same for every answer."""
        model, moved = models.policy.model, [0.0, 0.0]
        was_training = model.training
        model.eval()
        for pack in packs:
            mismatched = pack.columns["mismatch"] > 0
            if mismatched.any():  # an idle pack too: the others' forwards may wait for this one
                here = pack.to(models.policy.device)
                now_S = answer_sums(models.policy(here, self.needs).logprobs_T, here).cpu()
                if not pack.idle:
                    moved[0] += float((now_S - pack.columns["reference"])[mismatched].sum())
                    moved[1] += float(mismatched.sum())
        model.train(was_training)
        total, count = ranks.add_up(moved)
        z = max(0.0, total / count) if count else 0.0
        kept = [_matched(pack) for pack in packs]
        for pack in kept:
            pack.columns["z"] = torch.full_like(pack.columns["label"], z)
        return kept

    def loss(self, out, pack):
        reward_S = self.beta * (answer_sums(out.logprobs_T, pack) - pack.columns["reference"])
        z_S, good_S = self.beta * pack.columns["z"], pack.columns["label"] > 0
        sign_S = torch.where(good_S, 1.0, -1.0)
        weight_S = torch.where(good_S, self.good, self.bad)
        loss_S = weight_S * (1 - torch.sigmoid(sign_S * (reward_S - z_S)))
        good, bad = good_S.double().sum(), (~good_S).double().sum()
        return loss_S.sum(), {"kl": pack.columns["z"].sum(), "reward_good": (reward_S[good_S].sum(), good),
                              "reward_bad": (reward_S[~good_S].sum(), bad)}


def _others(rows: list[Sequence]) -> list[Sequence | None]:
    """To each row one with another prompt: of rows in runs of k that share theirs the one k places on, so that each
    answer serves once; else the next that there is, or None."""
    prompts = [s.ids[:_start(s)].tobytes() for s in rows]
    alike, count = Counter(prompts), len(rows)
    if len(alike) == 1:
        return [None] * count
    return [next(rows[j % count] for j in (*range(i + alike[mine], i + count), *range(i + 1, i + alike[mine]))
                 if prompts[j % count] != mine) for i, mine in enumerate(prompts)]


def _start(s: Sequence) -> int:
    """Where an answer begins."""
    return int(np.flatnonzero(s.weights)[0])


def _mismatch(asked: Sequence, answered: Sequence, number: int) -> Sequence:
    """One row's prompt with another's answer, no longer than the longer of the two."""
    starts = [_start(asked), _start(answered)]
    most = max(len(asked), len(answered))
    parts = [np.concatenate([a[:starts[0]], b[starts[1]:]])[:most] for a, b in (
        (asked.ids, answered.ids), (asked.weights, answered.weights), (asked.reasons, answered.reasons))]
    return Sequence(*parts, asked.origin, asked.source, {**asked.facts, "mismatch": 1.0}, number)


def _matched(pack: Pack) -> Pack:
    """A pack without its mismatched sequences."""
    kept = (pack.columns["mismatch"] == 0).nonzero()[:, 0].tolist()
    at = torch.cat([torch.arange(pack.bounds[i], pack.bounds[i + 1]) for i in kept])
    bounds = [0, *np.cumsum([pack.lengths[i] for i in kept]).tolist()]
    return replace(pack, ids_T=pack.ids_T[at], positions_T=pack.positions_T[at], targets_T=pack.targets_T[at],
                   weights_T=pack.weights_T[at], bounds=bounds, origins=[pack.origins[i] for i in kept],
                   sources=[pack.sources[i] for i in kept], numbers=[pack.numbers[i] for i in kept],
                   rows=[pack.rows[i] for i in kept], atoms=list(range(len(kept) + 1)),
                   columns={name: column[kept] for name, column in pack.columns.items()})
