"""The answers of one row, each rendered with the prompt, become one row again, or the reason why it is dropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..core.errors import RowError
from ..core.sequence import Row, Sequence
from .preferences import CONTEXTS_DIFFER, EQUAL, TIE
from .weigh import BEYOND, Rendered


def gather(row: Row, made: list[Rendered | RowError]) -> Rendered | RowError:
    """A row from what its conversations became; a row without answers is itself.

    The prompt's ids are the same in every sequence, up to the first trained token
    (test_preferences.py::test_the_prompt_is_rendered_once). An answer equal to an earlier one is left out.
    """
    if row.dropped:
        return Rendered([], row.dropped)
    if not row.answers:
        return made[0]
    if errors := [m for m in made if isinstance(m, RowError)]:
        return errors[0]
    total = sum(m.rendered for m in made)
    notes = tuple(dict.fromkeys(n for m in made for n in m.notes))
    reasons = [m.dropped or BEYOND for m in made if m.dropped or m.was_cut]
    if reasons:
        return Rendered([], reasons[0], total, notes=notes)
    if many := [m for m in made if len(m.sequences) != 1]:
        return RowError("an answer becomes several sequences under this chat template", where=row.origin,
                        found=f"{len(many[0].sequences)} sequences", expected="answers of one assistant turn",
                        fix="set bad_rows=skip, or choose a chat template that keeps earlier turns as they are")
    kept: list[Sequence] = []
    for rendered, facts in zip(made, row.facts, strict=True):
        sequence = up_to_the_stop(rendered.sequences[0])
        if not any(np.array_equal(sequence.ids, k.ids) for k in kept):
            sequence.facts = facts
            kept.append(sequence)
    lost = _wrong(row, kept, len(made))
    if lost:
        return Rendered([], lost, total, notes=notes)
    if len(kept) < len(made):
        notes += ("an answer that stands twice among those of a row: taken once",)
    return Rendered(kept, None, sum(map(len, kept)), notes=notes, together=row.kind == "pair")


def up_to_the_stop(sequence: Sequence) -> Sequence:
    """A sequence without what its template writes after the last trained token: an answer is judged where it ends."""
    end = int(np.flatnonzero(sequence.weights)[-1]) + 1
    return replace(sequence, ids=sequence.ids[:end], weights=sequence.weights[:end], reasons=sequence.reasons[:end])


def _wrong(row: Row, kept: list[Sequence], answers: int) -> str | None:
    """Why the rendered answers compare nothing; None where they do."""
    starts = {int(np.flatnonzero(s.weights)[0]) for s in kept}
    if len(starts) > 1 or len({s.ids[:min(starts)].tobytes() for s in kept}) > 1:
        return CONTEXTS_DIFFER  # a template that writes the prompt of one answer otherwise than the other's
    if len(kept) == 1 and answers > 1:
        return EQUAL
    if row.kind == "pair" and len({s.facts["rank"] for s in kept}) == 1:
        return TIE
    return None
