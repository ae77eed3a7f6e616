"""Bootstrap intervals and the paired test, against what is known exactly."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from posttrain.eval import intervals
from posttrain.eval.intervals import Tally, difference, interval, ratio

RNG = np.random.default_rng(0)


def test_the_interval_of_a_mean_is_that_of_the_normal_theory():
    values = RNG.normal(3.0, 2.0, 800)
    found = interval(ratio(values))
    half = 1.96 * values.std() / math.sqrt(800)
    assert found.value == pytest.approx(values.mean(), rel=1e-12) and found.p is None
    assert found.low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.12 * half)


def test_a_ratio_is_of_sums_not_a_mean_of_ratios():
    assert ratio(np.array([1.0, 9.0]), np.array([1.0, 3.0])).value == 2.5


def test_seed_and_chunks(monkeypatch):
    tally, other = ratio(RNG.random(50)), ratio(RNG.random(50))
    once, pair = interval(tally, 7), difference(tally, other, 7)
    assert interval(tally, 7) == once and interval(tally, 8) != once
    monkeypatch.setattr(intervals, "CHUNK", 170)
    assert interval(tally, 7) == once and difference(tally, other, 7).p == pytest.approx(pair.p, abs=1e-12)


def test_p_is_the_share_of_all_swaps():
    a, b = RNG.random(8), RNG.random(8) + 0.15
    gaps = [abs(np.dot(signs, b - a)) for signs in itertools.product((-1, 1), repeat=8)]
    exact = np.mean(np.array(gaps) >= abs((b - a).sum()) - 1e-12)
    found = difference(ratio(a), ratio(b))
    assert found.value == pytest.approx((b - a).mean()) and found.p == pytest.approx(exact, abs=0.02)
    assert found.low < found.value < found.high


def test_equal_models_do_not_differ():
    tally = ratio(RNG.random(30))
    assert difference(tally, tally) == intervals.Interval(0.0, 0.0, 0.0, 1.0)


def test_a_function_of_sums_is_resampled_as_a_whole():
    stats = np.stack([RNG.random(40) * 5, np.full(40, 2.0)], 1)
    plain, through = ratio(stats[:, 0], stats[:, 1]), Tally(stats, lambda s: np.exp(s[:, 0] / s[:, 1]))
    a, b = interval(plain), interval(through)
    assert b.value == pytest.approx(math.exp(a.value))
    assert b.low == pytest.approx(math.exp(a.low), rel=1e-3) and b.high == pytest.approx(math.exp(a.high), rel=1e-3)
