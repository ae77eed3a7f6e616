"""How sure a figure is: percentile bootstrap over rows, and a paired test between two models on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000
SWAPS = 9999  # the smallest p is 1 / (SWAPS + 1)
LEVEL = 0.95
CHUNK = 4 << 20  # counts held at a time: memory, never the result
BOOTSTRAP = "percentile bootstrap over rows (Efron 1979)"
TEST = "two-sided approximate randomization, rows swapped between the two models (Noreen 1989, Riezler & Maxwell 2005)"


@dataclass(frozen=True, slots=True)
class Tally:
    """A figure as a function of sums over rows: stats [N, C] float64, `of` [R, C] sums -> [R] values.

    A mean is the ratio of the sums of (value, 1); perplexity is exp(Σ nll / Σ tokens); BLEU is made of n-gram counts.
    """

    stats: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]

    @property
    def value(self) -> float:
        return float(self.of(self.stats.sum(0, keepdims=True))[0])


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with the ends of its 95 % interval; `p` where it is a paired difference that was tested."""

    value: float
    low: float
    high: float
    p: float | None = None


def ratio(tops: np.ndarray, bottoms: np.ndarray | float = 1.0) -> Tally:
    """Σ tops / Σ bottoms, both [N]; with bottoms 1 the mean."""
    return Tally(np.stack([tops, np.broadcast_to(bottoms, tops.shape)], 1).astype(np.float64), _quotient)


def _quotient(sums: np.ndarray) -> np.ndarray:
    return sums[:, 0] / np.where(sums[:, 1], sums[:, 1], np.nan)


def interval(tally: Tally, seed: int = 0) -> Interval:
    """The value and its 95 % interval; seeded, so the same rows give the same ends."""
    n = len(tally.stats)
    values = tally.of(np.concatenate([counts @ tally.stats for counts in _resamples(n, seed)]))
    return Interval(tally.value, *_ends(values))


def difference(base: Tally, other: Tally, seed: int = 0) -> Interval:
    """`other` − `base` on the same rows, the interval by resampling rows of both together, p by swapping them.

    p = (1 + #{|swapped difference| ≥ |difference|}) / (SWAPS + 1)
    """
    n = len(base.stats)
    assert n == len(other.stats), "paired figures need the same rows"
    found = other.value - base.value
    values = [other.of(counts @ other.stats) - base.of(counts @ base.stats) for counts in _resamples(n, seed)]
    gap, total = other.stats - base.stats, base.stats.sum(0) + other.stats.sum(0)
    least, extreme = abs(found) * (1 - 1e-12) - 1e-15, 0  # swaps that change nothing may differ by rounding
    for swapped in _swaps(n, seed):
        ours = base.stats.sum(0) + swapped @ gap
        extreme += int((abs(other.of(total - ours) - base.of(ours)) >= least).sum())
    return Interval(found, *_ends(np.concatenate(values)), p=(1 + extreme) / (SWAPS + 1))


def _ends(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]  # a resample without a single unit has no value
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def _resamples(n: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n rows is drawn, [r, n], RESAMPLES in all."""
    rng = np.random.default_rng([seed, n, 1])
    for r in _pieces(RESAMPLES, n):
        yield np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(r)]).astype(np.float64)


def _swaps(n: int, seed: int) -> Iterator[np.ndarray]:
    """Whether each of n rows is swapped, [r, n] of 0 and 1, SWAPS in all."""
    rng = np.random.default_rng([seed, n, 2])
    for r in _pieces(SWAPS, n):
        yield (rng.random((r, n)) < 0.5).astype(np.float64)


def _pieces(total: int, n: int) -> Iterator[int]:
    size = max(1, CHUNK // max(1, n))
    for start in range(0, total, size):
        yield min(size, total - start)
