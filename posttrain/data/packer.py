"""Lay the sequences of one update into packs: as few as best fit finds, as even as that allows."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence as Many

from ..core.sequence import Sequence


def pack_atoms(atoms: Many[Many[Sequence]], pack_tokens: int) -> list[list[Many[Sequence]]]:
    """Atoms of each pack, no pack longer than `pack_tokens`.

    Best-fit decreasing (Johnson 1973: at most 11/9 of the fewest packs possible, plus 6/9) finds how many packs; the
    longest-first, emptiest-pack deal then evens them out where it fits. Deterministic; packs and their sequences keep
    the order of `atoms`. Which pack an atom lies in changes memory and speed, never the result.
    """
    sizes = [sum(len(s) for s in atom) for atom in atoms]
    return [[atoms[i] for i in members] for members in assign(sizes, pack_tokens)]


def pack_sequences(atoms: Many[Many[Sequence]], pack_tokens: int) -> list[list[Sequence]]:
    """Sequences of each pack, no pack longer than `pack_tokens`, the sequences of an atom together."""
    return [[s for atom in pack for s in atom] for pack in pack_atoms(atoms, pack_tokens)]


def deal(atoms: Many[Many[Sequence]], shares: int) -> list[list[Many[Sequence]]]:
    """Atoms of each share, the part of an update that one process computes: alike in tokens, in the order of `atoms`.

    Deterministic, so that processes need not tell each other (tests/data/test_packer.py).
    """
    sizes = [sum(len(s) for s in atom) for atom in atoms]
    longest_first = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    return [[atoms[i] for i in sorted(members)] for members in _deal(sizes, longest_first, shares)]


def assign(sizes: Many[int], room: int) -> list[list[int]]:
    """Indices of `sizes` by bin, each bin's sum at most `room`; bins by their first index, indices ascending."""
    assert max(sizes, default=0) <= room, f"an atom of {max(sizes)} tokens cannot lie in a pack of {room}"
    longest_first = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    bins = _best_fit(sizes, longest_first, room)
    even = _deal(sizes, longest_first, len(bins))
    if max((sum(sizes[i] for i in members) for members in even), default=0) <= room:
        bins = even
    return sorted((sorted(members) for members in bins if members), key=lambda members: members[0])


def _best_fit(sizes: Many[int], longest_first: list[int], room: int) -> list[list[int]]:
    """Each item into the fullest bin that still holds it."""
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, bin), ascending
    for i in longest_first:
        at = bisect_left(free, (sizes[i], -1))
        if at < len(free):
            left, b = free.pop(at)
        else:
            left, b = room, len(bins)
            bins.append([])
        bins[b].append(i)
        insort(free, (left - sizes[i], b))
    return bins


def _deal(sizes: Many[int], longest_first: list[int], count: int) -> list[list[int]]:
    """Each item into the emptiest of `count` bins."""
    bins: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, b) for b in range(count)]
    for i in longest_first:
        load, b = heapq.heappop(loads)
        bins[b].append(i)
        heapq.heappush(loads, (load + sizes[i], b))
    return bins
