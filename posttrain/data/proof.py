"""The proof of every trained span: its prompt is what generation is given, and it decodes to its message."""

from __future__ import annotations

import re

from ..core.errors import RowError, UserError
from ..core.sequence import Row
from .encoder import Encoder
from .weigh import Draft, Laid


def prove(drafts: list[Draft], row: Row, decoded: list[str], bos: int | None, unknown: int | None) -> None:
    """Check every trained turn of a row; `decoded` are the decoded spans, in order of drafts and their turns.

    That ids[:start] equal `Renderer.prompt` of the messages before is checked where the seam is laid
    (render.py::Renderer._lay); the rest is checked here: the span decodes to scaffold, message and stop, the stop is
    one token and the last, the template's own marks agree, and no BOS is doubled.
    """
    texts = iter(decoded)
    for draft in drafts:
        ids = draft.encoder.ids(draft.encoded.ids)
        if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
            raise UserError("a sequence begins with two BOS tokens", where=row.origin,
                            found=repr(draft.encoder.plain(draft.text)[:80]), expected="one BOS",
                            fix="let the chat template write BOS once, at the start")
        for laid in draft.laid:
            if laid.proved:
                _prove_turn(draft, laid, row, next(texts), unknown, ids)


def _prove_turn(draft: Draft, laid: Laid, row: Row, text: str, unknown: int | None, ids) -> None:
    turn, encoder = laid.turn, draft.encoder
    span = turn.text[turn.start:turn.stop + 1]
    where = f"{row.origin}, message {turn.message} (assistant)"
    if text != span and not same_text(encoder, text, span):
        if unknown is not None and unknown in ids[laid.start:laid.stop + 1]:
            raise RowError("the vocabulary cannot spell an answer", where=where, found=repr(encoder.plain(text)[:120]),
                           expected=repr(encoder.plain(span)[:120]),
                           fix="use a tokenizer with byte fallback, or remove the row")
        raise UserError("a trained span does not match its message", where=where,
                        found=f"the span decodes to {encoder.plain(text)[:160]!r}",
                        expected=f"{encoder.plain(span)[:160]!r}: scaffold, message and stop",
                        fix=_see(row))
    if draft.encoded.ids[laid.stop] != encoder.backend.token_to_id(turn.text[turn.stop]):
        raise UserError("the stop token of an answer is not a token of its own", where=where,
                        found=repr(encoder.plain(turn.text[turn.stop - 20:turn.stop + 1])),
                        expected=encoder.plain(turn.text[turn.stop]), fix=_see(row))
    if turn.marks is not None:
        loose = [(a, b) for a, b in turn.pieces if not any(x <= a and b <= y for x, y in turn.marks)]
        if loose and not all(_covered(piece, turn.marks) for piece in loose):
            a, b = loose[0]
            raise UserError("the template's own generation marks leave out part of an answer", where=where,
                            found=f"{encoder.plain(turn.text[a:b])[:120]!r} stands outside {{% generation %}}",
                            expected="every part of the answer inside the marks",
                            fix="choose another chat_template, or mend its marks")


def _covered(piece: tuple[int, int], marks: list[tuple[int, int]]) -> bool:
    """Do the marks together cover the piece? (A template may mark an answer in several stretches.)"""
    at = piece[0]
    for a, b in sorted(marks):
        if a <= at < b:
            at = b
    return at >= piece[1]


def same_text(encoder: Encoder, found: str, wanted: str) -> bool:
    """Equal up to what the tokenizer's own normalizer does and the space some put before every stretch of text."""
    if encoder.backend.normalizer is not None:
        wanted = encoder.backend.normalizer.normalize_str(wanted).replace("\u2581", " ")
        found = encoder.backend.normalizer.normalize_str(found).replace("\u2581", " ")
    if not encoder.keeps_space:
        found, wanted = "".join(found.split()), "".join(wanted.split())
    start = re.compile(f"(^|{encoder.any_mirror.pattern}) +")
    return found == wanted or start.sub(r"\1", found) == start.sub(r"\1", wanted)


def _see(row: Row) -> str:
    path, _, number = row.origin.rpartition(":")
    return (f"`posttrain data show --data {path} --row {number}` shows every token; "
            "another chat_template or enable_thinking may fit the data")
