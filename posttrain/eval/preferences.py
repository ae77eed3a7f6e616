"""How well scores tell the better answer from the worse: accuracy, margins, calibration, and what length has to do
with it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from ..core import ranks
from ..core.pack import Pack
from ..train.objective import Models
from ..train.pairs import answer_lengths, pairs

EDGES = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)  # of the margins' histogram; open at both ends
SURE = (0.6, 0.7, 0.8, 0.9)  # edges of the bins of how sure the model is, between 0.5 and 1
ALIKE = 0.1  # lengths that differ by at most this share of the longer are alike
LENGTHS = ("the better one is shorter", "about the same length", "the better one is longer")


@dataclass
class Margins:
    """Counts over pairs; nothing but sums, so that processes can be added up."""

    totals: list[float] = field(default_factory=lambda: [0.0] * 4)  # pairs, right, sum of margins, longer preferred
    histogram: list[float] = field(default_factory=lambda: [0.0] * (len(EDGES) + 1))
    sure: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(len(SURE) + 1)])
    lengths: list[list[float]] = field(default_factory=lambda: [[0.0] * 2 for _ in LENGTHS])

    def add(self, better: float, worse: float, tokens_better: float, tokens_worse: float) -> None:
        """One pair: its two scores and the lengths of its answers."""
        margin = better - worse
        right = float(margin > 0)
        longer = tokens_better > tokens_worse
        for i, value in enumerate((1.0, right, margin, float(right if longer else margin < 0))):
            self.totals[i] += value
        self.histogram[sum(margin >= edge for edge in EDGES)] += 1
        chance = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        for i, value in enumerate((1.0, chance, right)):
            self.sure[sum(chance >= edge for edge in SURE)][i] += value
        alike = abs(tokens_better - tokens_worse) <= ALIKE * max(tokens_better, tokens_worse)
        group = self.lengths[1 if alike else 2 if longer else 0]
        group[0] += 1
        group[1] += right

    def added_up(self) -> Margins:
        """Those of all processes."""
        flat = ranks.add_up([*self.totals, *self.histogram, *(x for b in self.sure for x in b),
                             *(x for b in self.lengths for x in b)])
        at = iter(flat)
        return Margins([next(at) for _ in self.totals], [next(at) for _ in self.histogram],
                       [[next(at) for _ in b] for b in self.sure], [[next(at) for _ in b] for b in self.lengths])

    def to_json(self) -> dict[str, Any]:
        """pairs; accuracy with its 95 % interval; mean margin and histogram; calibration; accuracy by length.

        A model is calibrated if of the pairs of which it is so sure, σ(|margin|), as many come out right;
        `calibration_error` is the mean distance, weighed by pairs (Naeini et al. 2015).
        """
        count, right, margin, longer = self.totals
        if not count:
            return {"pairs": 0}
        edges = [None, *EDGES, None]
        bins = [{"from": a, "to": b, "pairs": int(n), "sure": p / n if n else None, "right": r / n if n else None}
                for a, b, (n, p, r) in zip((0.5, *SURE), (*SURE, 1.0), self.sure, strict=True)]
        return {"pairs": int(count), "accuracy": _share(right, count), "margin": margin / count,
                "histogram": [{"from": a, "to": b, "pairs": int(n)}
                              for a, b, n in zip(edges, edges[1:], self.histogram, strict=False)],
                "calibration": bins,
                "calibration_error": sum(abs(p - r) for n, p, r in self.sure) / count,
                "by_length": {name: _share(r, n) | {"pairs": int(n)} for name, (n, r) in zip(
                    LENGTHS, self.lengths, strict=True) if n},
                "prefers_the_longer": longer / count}


def _share(right: float, count: float) -> dict[str, float]:
    """A share with the ends of its 95 % interval (Wilson 1927)."""
    z = 1.959963984540054
    p, n = right / count, count
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": max(0.0, middle - half), "high": min(1.0, middle + half)}


@torch.no_grad()
def judge_pairs(models: Models, packs: Iterable[Pack]) -> dict[str, Any]:
    """What the policy's score head makes of held-out pairs; the packs are this process's."""
    model, found = models.policy.model, Margins()
    was_training = model.training
    model.eval()
    for pack in packs:
        here = pack.to(models.policy.device)
        scores = models.policy(here, ("scores",)).scores_S.tolist()
        lengths = answer_lengths(pack).tolist()
        for w, v in zip(*pairs(pack), strict=True) if not pack.idle else ():
            found.add(scores[w], scores[v], lengths[w], lengths[v])
    model.train(was_training)
    return found.added_up().to_json()


def lines(report: dict[str, Any]) -> list[str]:
    """A report of `Margins.to_json` as lines of text."""
    if not report["pairs"]:
        return []

    def share(s: dict[str, float]) -> str:
        return f"{s['value']:.1%} ({s['low']:.1%} to {s['high']:.1%})"

    most = max(b["pairs"] for b in report["histogram"])
    made = [f"pairs {report['pairs']:,}: the better answer scores higher in {share(report['accuracy'])}, by "
            f"{report['margin']:.2f} on average"]
    for b in report["histogram"]:
        a, z = ("" if x is None else f"{x:g}" for x in (b["from"], b["to"]))
        made.append(f"  margin {a:>4} … {z:<4} {'█' * round(30 * b['pairs'] / most)} {b['pairs']:,}")
    made.append(f"calibration: off by {report['calibration_error']:.1%} on average")
    made += [f"  sure {b['from']:.0%} … {b['to']:.0%}: said {b['sure']:.1%}, right {b['right']:.1%} of {b['pairs']:,}"
             for b in report["calibration"] if b["pairs"]]
    made.append(f"length: the longer answer scores higher in {report['prefers_the_longer']:.1%}")
    made += [f"  {name}: right in {share(s)} of {s['pairs']:,}" for name, s in report["by_length"].items()]
    return made
