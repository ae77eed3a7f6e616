"""Spans -> a weight and a reason per token, and what is cut when a row is longer than max_length."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import UserError
from ..core.sequence import CONTENT, PROMPT, SCAFFOLD, STOP, TEXT, UNTRAINED, Row, Sequence
from .encoder import Encoded, Encoder
from .spans import Turn

# Why a row is dropped; the ledger counts under these names.
EMPTY_ANSWER = "empty answer"
EMPTY_TEXT = "empty text"
EMPTY_PROMPT = "empty prompt"
NOTHING_TRAINED = "nothing to train"
TOO_LONG = "longer than max_length"
FIRST_TOO_LONG = "first exchange longer than max_length"
BEYOND = "trained answer beyond max_length"


@dataclass(slots=True)
class Rendered:
    """One row, ready: its sequences, or why it was dropped.

    Token counts balance exactly: rendered = len of all sequences + cut, or, where dropped, all of it is dropped
    (test_weigh.py::test_tokens_balance). `notes` are things the row holds and the template leaves out;
    `together` says that the sequences are compared, and so share a pack.
    """

    sequences: list[Sequence]
    dropped: str | None = None
    rendered: int = 0
    cut: int = 0
    was_cut: bool = False
    notes: tuple[str, ...] = ()
    together: bool = False


@dataclass(slots=True)
class Laid:
    """A turn in tokens: ids[:start] is its prompt, ids[stop] its stop token."""

    turn: Turn
    start: int
    stop: int
    exact: bool = True

    @property
    def proved(self) -> bool:
        """Trained turns are proved; under all_tokens a turn that merges with its prompt has no first token to prove."""
        return self.exact and self.turn.weight > 0


@dataclass(slots=True)
class Draft:
    """One coded text on its way to a sequence: its encoding and the turns that are trained in it."""

    text: str
    encoder: Encoder
    turns: list[Turn]
    encoded: Encoded | None = None
    laid: list[Laid] = field(default_factory=list)


def weigh(draft: Draft, row: Row, all_tokens: bool = False) -> Sequence:
    """A draft with its turns laid -> ids [L], weights [L], reasons [L]."""
    length, starts = len(draft.encoded.ids), draft.encoded.starts
    weights = np.zeros(length, np.float32)
    reasons = np.full(length, PROMPT, np.uint8)
    if all_tokens:
        weights[:], reasons[:] = 1.0, TEXT
    for laid in draft.laid:
        turn, end = laid.turn, laid.stop + 1
        if not turn.weight:
            reasons[laid.start:end] = UNTRAINED
            weights[laid.start:end] = 0
            continue
        weights[laid.start:end] = turn.weight
        reasons[laid.start:end] = SCAFFOLD
        for a, b in turn.pieces:
            reasons[max(laid.start, _holding(starts, a)):bisect_left(starts, b)] = CONTENT
        reasons[bisect_left(starts, turn.ending, laid.start):end] = STOP
    if draft.laid and not all_tokens:
        reasons[draft.laid[-1].stop + 1:] = UNTRAINED
    weights[0] = 0
    if all_tokens:
        reasons[0] = PROMPT
    return Sequence(draft.encoder.ids(draft.encoded.ids), weights, reasons, row.origin, row.source)


def lay(turn: Turn, encoded: Encoded, start: int, exact: bool = True) -> Laid:
    """Where the stop character of a turn is among the tokens."""
    return Laid(turn, start, bisect_right(encoded.starts, turn.stop) - 1, exact)


def _holding(starts: list[int], at: int) -> int:
    """The token that holds character `at`: the space before a word is often inside the word's token."""
    i = bisect_left(starts, at)
    return i if i < len(starts) and starts[i] == at else max(i - 1, 0)


def fit(sequences: list[Sequence], drafts: list[Draft], row: Row, *, max_length: int, overlong: str,
        notes: tuple[str, ...] = ()) -> Rendered:
    """Sequences within max_length: whole leading turns are kept, an answer is never cut before its stop."""
    total = sum(map(len, sequences))
    if max(map(len, sequences)) <= max_length:
        return _settle(sequences, None, total, 0, notes)
    if overlong == "error":
        raise UserError("a row is longer than max_length", where=row.origin,
                        found=f"{max(map(len, sequences))} tokens", expected=f"at most {max_length}",
                        fix=f"set max_length={max(map(len, sequences))}, or overlong to cut or drop")
    if overlong == "drop":
        return Rendered([], TOO_LONG, total, notes=notes)
    kept, cut = [], 0
    for sequence, draft in zip(sequences, drafts, strict=True):
        ends = [laid.stop + 1 for laid in draft.laid if laid.stop < max_length]
        keep = len(sequence) if len(sequence) <= max_length else max(ends, default=0)
        cut += len(sequence) - keep
        if keep:
            kept.append(sequence if keep == len(sequence) else Sequence(
                sequence.ids[:keep], sequence.weights[:keep], sequence.reasons[:keep], row.origin, row.source))
    if not kept:
        return Rendered([], FIRST_TOO_LONG, total, notes=notes)
    return _settle(kept, BEYOND, total, cut, notes)


def _settle(sequences: list[Sequence], lost: str | None, total: int, cut: int, notes: tuple[str, ...]) -> Rendered:
    """Sequences that train nothing are dead weight: cut away; with none left the row is dropped."""
    live = [s for s in sequences if s.trained]
    cut += sum(map(len, sequences)) - sum(map(len, live))
    if not live:
        return Rendered([], lost or NOTHING_TRAINED, total, notes=notes)
    return Rendered(live, None, total, cut, cut > 0, notes)


def split_text(ids: list[int] | np.ndarray, row: Row, max_length: int) -> list[Sequence]:
    """A document -> pieces of at most max_length tokens; each later piece starts with the last token before it.

    So every token but the first is a target exactly once (test_weigh.py::test_long_texts_lose_nothing).
    """
    ids = np.asarray(ids, np.int32)
    pieces, at = [], 0
    while at + 1 < len(ids):
        part = ids[at:at + max_length]
        weights = np.ones(len(part), np.float32)
        reasons = np.full(len(part), TEXT, np.uint8)
        weights[0], reasons[0] = 0, PROMPT
        pieces.append(Sequence(part, weights, reasons, row.origin, row.source))
        at += max_length - 1
    return pieces
