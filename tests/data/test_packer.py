"""Packs: few, even, never too long, always the same."""

import random
import time

import numpy as np
import pytest

from posttrain.core.sequence import Sequence
from posttrain.data.packer import assign, deal, pack_sequences


def sequence(length: int, name: str = "a:1") -> Sequence:
    return Sequence(np.arange(length, dtype=np.int32), np.ones(length, np.float32), np.zeros(length, np.uint8), name)


def test_exact_bins():
    assert assign([], 10) == []
    assert assign([10], 10) == [[0]]
    assert assign([6, 5, 4, 5], 10) == [[0, 2], [1, 3]]
    assert assign([3, 3, 3, 3], 100) == [[0, 1, 2, 3]]
    assert assign([7, 7, 7], 10) == [[0], [1], [2]]


def test_packs_are_evened_out():
    # best fit alone would leave 10 and 4
    assert assign([4, 4, 2, 2, 2], 10) == [[0, 2, 4], [1, 3]]


def test_best_fit_stays_where_even_packs_do_not_fit():
    # the deal would make 7 + 5 and 6 + 5 + 4 = 15
    assert assign([7, 6, 5, 5, 4], 14) == [[0, 1], [2, 3, 4]]


def test_atoms_stay_together_and_order_is_kept():
    atoms = [[sequence(3, f"a:{i}"), sequence(2, f"b:{i}")] for i in range(4)]
    packs = pack_sequences(atoms, 10)
    assert [[s.origin for s in p] for p in packs] == [["a:0", "b:0", "a:2", "b:2"], ["a:1", "b:1", "a:3", "b:3"]]


def test_shares_are_alike_in_tokens_and_lose_nothing():
    atoms = [[sequence(n, f"a:{n}")] for n in (9, 1, 8, 2, 7, 3)]
    shares = deal(atoms, 3)
    assert [[len(s) for atom in share for s in atom] for share in shares] == [[9, 1], [8, 2], [7, 3]]
    assert deal(atoms[:2], 3) == [[atoms[0]], [atoms[1]], []] and deal(atoms, 1) == [atoms]


def test_an_atom_longer_than_a_pack_is_our_mistake():
    with pytest.raises(AssertionError, match="an atom of 11 tokens cannot lie in a pack of 10"):
        pack_sequences([[sequence(11)]], 10)


@pytest.mark.parametrize("seed", range(200))
def test_every_item_once_and_no_bin_too_full(seed):
    rng = random.Random(seed)
    room = rng.randint(1, 5000)
    sizes = [rng.randint(0 if rng.random() < 0.1 else 1, room) for _ in range(rng.randint(0, 120))]
    bins = assign(sizes, room)
    assert sorted(i for b in bins for i in b) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in b) <= room for b in bins)
    assert all(b == sorted(b) for b in bins) and [b[0] for b in bins] == sorted(b[0] for b in bins)
    fewest = -(-sum(sizes) // room)
    assert len(bins) <= fewest * 11 / 9 + 6 / 9 + len(sizes) * 0.5  # loose; the tight bound is on realistic sizes below
    assert bins == assign(sizes, room)


def test_realistic_lengths_waste_little():
    rng = np.random.default_rng(0)
    sizes = np.clip(rng.lognormal(5.0, 0.8, 2000), 8, 1024).astype(int).tolist()
    bins = assign(sizes, 4096)
    assert len(bins) <= -(-sum(sizes) // 4096) + 1
    loads = [sum(sizes[i] for i in b) for b in bins]
    assert max(loads) <= 4096 and min(loads) >= 0.9 * max(loads)


def test_thousands_of_sequences_cost_milliseconds():
    rng = np.random.default_rng(1)
    sizes = rng.integers(8, 1024, 5000).tolist()
    start = time.perf_counter()
    assign(sizes, 4096)
    assert time.perf_counter() - start < 1.0
