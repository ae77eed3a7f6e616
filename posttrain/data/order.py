"""Which rows make update n: a closed form of (seed, epoch, update number), so that seeking costs the same for every n.

Sources without a share lie end to end in the main stream, whose length defines an epoch. Sources with a share s take s
of the rows of every update and go round as often as that needs.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence as Many
from fractions import Fraction

import numpy as np

from ..core.errors import UserError
from ..core.seeds import seed_for


def permutation(size: int, seed: int, what: str, *key: int) -> np.ndarray:
    """A random order of `size` items, [size] uint32 (uint64 from 2^32 items on), by (seed, what, key) alone.

    It sorts raw 64-bit draws of PCG64, whose stream is fixed for good, where numpy's own shuffle may change between
    versions (test_order.py::test_permutation_is_pinned).
    """
    draws = np.random.PCG64(seed_for(seed, what, *key)).random_raw(size)
    return np.argsort(draws).astype(np.uint32 if size < 2**32 else np.uint64)


class Order:
    """Rows of update n = 0 … total-1 over sources of `lengths` rows, of which `shares` (None: main) ask for a share.

    An epoch is a line of K slots, the fewest that hold every main row once; update u of it is slots uB … (u+1)B, the
    last one shorter. Of the first k slots floor(kS) are shared (S the sum of shares), and those are dealt to the
    sources by the same nested floors: every share is exact in the long run, and never off by more than one row per
    source (test_order.py::test_shares_are_exact). At most one permutation per stream is held: 4 bytes a row.
    """

    def __init__(self, lengths: Many[int], shares: Many[float | None], batch_size: int, *, seed: int,
                 shuffle: bool = True, epochs: float = 1.0, max_steps: int | None = None,
                 names: Many[str] | None = None):
        names = list(names or [f"source {i + 1}" for i in range(len(lengths))])
        for name, size in zip(names, lengths, strict=True):
            if size == 0:
                raise UserError("there are no rows to train on", where=name, found="0 rows",
                                fix="name a file that holds rows, or drop it from data")
        check_shares(shares, names)
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.main = [i for i, s in enumerate(shares) if s is None]
        self.shared = [i for i, s in enumerate(shares) if s is not None]
        self.lengths = list(lengths)
        # repr, not the float itself: 0.2 means one fifth
        self._shares = [Fraction(repr(float(shares[i]))) for i in self.shared]
        self._tails = [sum(self._shares[j:], Fraction(0)) for j in range(len(self.shared))]
        self._starts = np.concatenate([[0], np.cumsum([lengths[i] for i in self.main])]).astype(np.int64)
        self.main_rows = int(self._starts[-1])
        most = math.ceil(self.main_rows / (1 - sum(self._shares, Fraction(0)))) + 1
        self._slots = bisect_left(range(most + 1), self.main_rows, key=lambda k: self._counts(k)[0])
        self.updates_per_epoch = -(-self._slots // batch_size)
        whole = Fraction(repr(float(epochs))) * self.updates_per_epoch
        self.total = max_steps if max_steps is not None else max(1, math.ceil(whole))
        self._cache: dict[int, tuple[int, np.ndarray]] = {}

    def rows(self, n: int) -> list[tuple[int, int]]:
        """(source, row) of update n, main rows first: O(batch) once the epoch's permutation is there."""
        return [(source, row) for source, row, _ in self.places(n)]

    def places(self, n: int) -> list[tuple[int, int, int]]:
        """(source, row, pass) of update n, where pass counts how often the source was gone through before."""
        epoch, update = divmod(n, self.updates_per_epoch)
        a, b = update * self.batch_size, min((update + 1) * self.batch_size, self._slots)
        before, after, each = self._counts(a), self._counts(b), self._counts(self._slots)
        at = self._take(0, epoch, before[0], after[0], self.main_rows)
        which = np.searchsorted(self._starts, at, side="right") - 1
        found = [(self.main[w], int(p - self._starts[w]), epoch) for w, p in zip(which.tolist(), at, strict=True)]
        for j, source in enumerate(self.shared, start=1):
            found += self._cycle(j, source, epoch * each[j] + before[j], epoch * each[j] + after[j])
        return found

    def epoch(self, n: int) -> float:
        """Passes over the main rows that are done after n updates: a whole number exactly at each epoch's end."""
        epoch, update = divmod(n, self.updates_per_epoch)
        return epoch + update * self.batch_size / self._slots

    def ends_epoch(self, n: int) -> bool:
        """Whether update n is the last of its epoch."""
        return (n + 1) % self.updates_per_epoch == 0

    def _counts(self, slots: int) -> list[int]:
        """How many of an epoch's first `slots` slots each stream gets: the main one, then each shared source."""
        rest = math.floor(slots * self._tails[0]) if self._tails else 0
        counts = [slots - rest]
        for share, tail in zip(self._shares, self._tails, strict=True):
            counts.append(math.floor(rest * share / tail))
            rest -= counts[-1]
        return counts

    def _cycle(self, stream: int, source: int, first: int, last: int) -> list[tuple[int, int, int]]:
        """Rows first … last-1 of a source that is gone through again and again, each pass in its own order."""
        found, size = [], self.lengths[source]
        while first < last:
            lap, start = divmod(first, size)
            stop = min(size, start + last - first)
            found += [(source, row, lap) for row in self._take(stream, lap, start, stop, size).tolist()]
            first += stop - start
        return found

    def _take(self, stream: int, lap: int, start: int, stop: int, size: int) -> np.ndarray:
        """Positions start … stop-1 of one pass over a stream, as rows of it, [stop-start] int64."""
        if not self.shuffle or start == stop:
            return np.arange(start, stop, dtype=np.int64)
        if self._cache.get(stream, (-1,))[0] != lap:
            self._cache.pop(stream, None)  # the old one goes before the new one is made
            self._cache[stream] = (lap, permutation(size, self.seed, "order", stream, lap))
        return self._cache[stream][1][start:stop].astype(np.int64)


class HeldOut:
    """The rows of one source that `eval_split` keeps out of training, by (seed, source) alone.

    Holds `share` of the rows, at least one where there are two; memory is 8 bytes per row held, not per row there.
    """

    def __init__(self, size: int, share: float, seed: int, source: int):
        count = min(max(1, round(size * share)), size - 1) if share and size else 0
        self.rows = np.sort(permutation(size, seed, "eval_split", source)[:count]).astype(np.int64)
        self.kept = size - count
        self._gaps = self.rows - np.arange(count)

    def row(self, i: int) -> int:
        """The source's row that is the i-th of those kept for training: O(log held)."""
        return i + int(np.searchsorted(self._gaps, i, side="right"))


def check_shares(shares: Many[float | None], names: Many[str]) -> None:
    """Stop where shares leave no epoch to count: every source shared, or shares of 1 or more."""
    asked = [(name, s) for name, s in zip(names, shares, strict=True) if s is not None]
    shown = ", ".join(name for name, _ in asked)
    if len(asked) == len(shares):
        which = "every data source asks" if len(asked) > 1 else "the only data source asks"
        raise UserError(f"{which} for a share, so nothing says how long an epoch is", where="data", found=shown,
                        expected="at least one source without @share",
                        fix="drop the @share of the source whose rows make the epoch" if len(asked) > 1 else
                        "drop the @share, or name the rows that it is a share beside: --data ROWS --data " + shown)
    if any(s <= 0 for _, s in asked) or sum(Fraction(repr(float(s))) for _, s in asked) >= 1:
        raise UserError("the shares leave no room in an update", where="data", found=shown,
                        expected="shares above 0 that sum to less than 1",
                        fix="lower them: the sources without @share take what is left of every update")
