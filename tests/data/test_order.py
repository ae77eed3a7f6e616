"""Which rows make which update: exact, closed form, every row once an epoch."""

import time
from collections import Counter

import numpy as np
import pytest

from posttrain.core.errors import UserError
from posttrain.data.order import HeldOut, Order, permutation


def make(lengths, shares=None, batch=4, **more):
    more.setdefault("seed", 0)
    return Order(lengths, shares or [None] * len(lengths), batch, **more)


def test_permutation_is_pinned():
    assert permutation(10, 42, "order", 0, 0).tolist() == [9, 5, 4, 7, 8, 1, 6, 0, 3, 2]
    assert permutation(10, 42, "order", 0, 1).tolist() == [2, 5, 9, 8, 7, 6, 0, 1, 3, 4]
    assert permutation(5, 42, "eval_split", 0).tolist() == [1, 4, 0, 2, 3]


def test_file_order_without_shuffle():
    order = make([3, 2], batch=2, shuffle=False, epochs=2)
    assert (order.updates_per_epoch, order.total) == (3, 6)
    assert [order.rows(n) for n in range(6)] == [[(0, 0), (0, 1)], [(0, 2), (1, 0)], [(1, 1)]] * 2
    assert [order.epoch(n) for n in range(7)] == [0, 0.4, 0.8, 1, 1.4, 1.8, 2]
    assert [order.ends_epoch(n) for n in range(6)] == [False, False, True] * 2


def test_every_row_once_an_epoch_and_a_new_order_each():
    order = make([7, 5], epochs=3)
    epochs = [[r for n in range(3 * e, 3 * e + 3) for r in order.rows(n)] for e in range(3)]
    rows = [(0, i) for i in range(7)] + [(1, i) for i in range(5)]
    assert all(sorted(e) == rows for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != rows
    assert epochs[0] != [r for n in range(3) for r in make([7, 5], seed=1).rows(n)]


def test_seeking_is_the_same_as_walking():
    lengths, shares = [101, 13, 7, 3], [None, None, 0.2, 0.15]
    walked = make(lengths, shares, 8, epochs=4)
    updates = [walked.rows(n) for n in range(walked.total)]
    for n in reversed(range(walked.total)):
        assert make(lengths, shares, 8, epochs=4).rows(n) == walked.rows(n) == updates[n]


@pytest.mark.parametrize("shares", [[None, 0.2], [None, 0.5, 0.25], [None, 0.1, 0.1, 0.1], [0.3, None, 0.3, None, 0.3],
                                    [None, 0.98], [None, 0.01]])
@pytest.mark.parametrize("batch", [1, 2, 3, 16])
def test_shares_are_exact(shares, batch):
    lengths = [50 + 7 * i for i in range(len(shares))]
    order = make(lengths, shares, batch, epochs=2)
    per_epoch = order.updates_per_epoch
    for epoch in range(2):
        updates = [order.rows(n) for n in range(epoch * per_epoch, (epoch + 1) * per_epoch)]
        assert all(len(u) == batch for u in updates[:-1]) and 1 <= len(updates[-1]) <= batch
        taken = Counter(s for u in updates for s, _ in u)
        slots = sum(taken.values())
        main = [r for u in updates for r in u if shares[r[0]] is None]
        assert sorted(main) == [(s, i) for s, size in enumerate(lengths) if shares[s] is None for i in range(size)]
        for source, share in enumerate(shares):
            if share is not None:
                assert abs(taken[source] - share * slots) <= len(shares)
        seen = Counter()
        for k, u in enumerate(updates[:-1], start=1):  # not only at the end: all along
            seen.update(s for s, _ in u)
            assert all(abs(seen[s] - share * k * batch) <= len(shares) for s, share in enumerate(shares) if share)


def test_one_share_follows_the_plain_floor():
    order = make([80, 1000], [None, 0.2], 16)
    # floor((n + 1) B s) - floor(n B s); the 80 main rows end after 99 slots
    assert [Counter(s for s, _ in order.rows(n))[1] for n in range(order.total)] == [3, 3, 3, 3, 4, 3, 0]
    assert [len(order.rows(n)) for n in range(order.total)] == [16, 16, 16, 16, 16, 16, 3]


def test_shared_source_goes_round_in_whole_passes():
    order = make([100, 6], [None, 0.25], 4, epochs=2)
    taken = [(row, lap) for n in range(order.total) for s, row, lap in order.places(n) if s == 1]
    assert [lap for _, lap in taken] == [i // 6 for i in range(len(taken))]
    for lap in range(len(taken) // 6):
        assert sorted(row for row, _ in taken[6 * lap:6 * lap + 6]) == list(range(6))
    assert [row for row, _ in taken[:6]] != [row for row, _ in taken[6:12]]


def test_epochs_and_steps():
    assert make([100], batch=10, epochs=1).total == 10
    assert make([100], batch=10, epochs=0.5).total == 5
    assert make([100], batch=10, epochs=0.41).total == 5
    assert make([100], batch=10, epochs=0.1).total == 1  # 0.1 is one tenth, not the float just above it
    assert make([100], batch=10, epochs=2.3).total == 23
    assert make([100], batch=10, epochs=0.001).total == 1
    assert make([101], batch=10, epochs=2).total == 22
    assert make([100], batch=10, epochs=5, max_steps=3).total == 3
    assert make([5], batch=10, max_steps=7).total == 7
    assert len(make([5], batch=10, max_steps=7).rows(6)) == 5


def test_seeking_costs_the_same_everywhere():
    def seconds(n):
        order = make([1_000_000, 5000], [None, 0.2], 16, epochs=100)
        start = time.perf_counter()
        order.rows(n)
        return time.perf_counter() - start

    near, far, farther = (min(seconds(n) for _ in range(3)) for n in (10, 10_000, 5_000_000))
    assert far < 3 * near + 0.05 and farther < 3 * near + 0.05


def test_one_permutation_of_four_bytes_a_row_is_held():
    order = make([1_000_000], epochs=3)
    order.rows(0)
    order.rows(order.total - 1)
    assert {k: (lap, p.nbytes) for k, (lap, p) in order._cache.items()} == {0: (2, 4_000_000)}


@pytest.mark.parametrize(("size", "share", "count"), [(100, 0.02, 2), (10, 0.02, 1), (3, 0.5, 2), (2, 0.9, 1),
                                                      (1, 0.5, 0), (50, 0.0, 0)])
def test_held_out_and_kept_make_the_whole(size, share, count):
    held = HeldOut(size, share, 42, 0)
    assert (len(held.rows), held.kept) == (count, size - count)
    assert sorted(held.rows.tolist() + [held.row(i) for i in range(held.kept)]) == list(range(size))


def test_held_out_rows_are_fixed_by_seed_and_source():
    rows = HeldOut(1000, 0.01, 42, 0).rows.tolist()
    assert rows == HeldOut(1000, 0.01, 42, 0).rows.tolist() == [245, 288, 442, 553, 599, 687, 718, 752, 770, 776]
    assert rows != HeldOut(1000, 0.01, 42, 1).rows.tolist() != HeldOut(1000, 0.01, 43, 0).rows.tolist()


def test_every_source_with_a_share_is_an_error():
    with pytest.raises(UserError) as e:
        make([10, 10], [0.2, 0.3], names=["a.jsonl@0.2", "b.jsonl@0.3"])
    assert str(e.value) == ("error: every data source asks for a share, so nothing says how long an epoch is\n"
                            "  where:    data\n"
                            "  found:    a.jsonl@0.2, b.jsonl@0.3\n"
                            "  expected: at least one source without @share\n"
                            "  fix:      drop the @share of the source whose rows make the epoch")


@pytest.mark.parametrize("shares", [[None, 0.6, 0.4], [None, 1.0, 0.1], [None, -0.1, 0.1], [None, 0.0, 0.1]])
def test_shares_that_leave_no_room_are_an_error(shares):
    with pytest.raises(UserError, match="the shares leave no room in an update") as e:
        make([10, 10, 10], shares)
    assert e.value.expected == "shares above 0 that sum to less than 1"


def test_a_source_without_rows_is_an_error():
    with pytest.raises(UserError) as e:
        make([10, 0], names=["a.jsonl", "b.jsonl"])
    assert (e.value.message, e.value.where) == ("there are no rows to train on", "b.jsonl")


def test_positions_fit_their_type():
    assert permutation(10, 0, "order").dtype == np.uint32
