"""Answers to a few held-out prompts at every validation: what the loss does not show, and whether the model stops."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.sequence import CONTENT, SCAFFOLD, STOP, Sequence
from ..model.sample import generate

PROMPTS = 4
MOST = 128  # new tokens of an answer, and twice the longest reference where that is less


@dataclass(slots=True)
class Sampler:
    """The prompts are the ids before a held-out answer's span, which the renderer proved to be those of generation."""

    model: Any
    spec: Any
    prompts: list[list[int]]
    references: list[list[int]]
    origins: list[str]

    def __call__(self) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """A line per prompt for samples.jsonl, and `eval_stops`, the share that ended by themselves; greedy."""
        room = min(MOST, 16 + 2 * max(map(len, self.references)))
        made = generate(self.model, self.prompts, max_new_tokens=room, stop_ids=self.spec.stop_ids)
        rows = zip(self.origins, self.prompts, self.references, made, strict=True)
        lines = [{"row": origin, "prompt": self.spec.decode(prompt), "reference": self._text(reference),
                  "answer": self._text(g.answer_ids), "stopped": g.stopped}
                 for origin, prompt, reference, g in rows]
        return lines, {"eval_stops": sum(g.stopped for g in made) / len(made)}

    def _text(self, ids: list[int]) -> str:
        ids = ids[:-1] if ids and ids[-1] in self.spec.stop_ids else ids
        return self.spec.decode(ids).strip()


def make_sampler(model, spec, sequences: list[Sequence]) -> Sampler | None:
    """Prompts from sequences that hold an answer, spread over all of them; None where none does."""
    usable = [(s, span) for s in sequences if (span := last_answer(s)) is not None]
    if not usable:
        return None
    chosen = [usable[i * len(usable) // min(PROMPTS, len(usable))] for i in range(min(PROMPTS, len(usable)))]
    return Sampler(model, spec, [s.ids[:a].tolist() for s, (a, _) in chosen],
                   [s.ids[a:b].tolist() for s, (a, b) in chosen], [s.origin for s, _ in chosen])


def last_answer(sequence: Sequence) -> tuple[int, int] | None:
    """Where the last answer's span begins and ends; None for a sequence without one, or without a prompt."""
    inside = np.isin(sequence.reasons, (SCAFFOLD, CONTENT, STOP)) & (sequence.weights != 0)
    where = np.flatnonzero(inside)
    if not len(where) or not (sequence.reasons[where] == CONTENT).any():
        return None
    end = int(where[-1]) + 1
    before = np.flatnonzero(~inside[:end])
    start = int(before[-1]) + 1 if len(before) else 0
    return (start, end) if start else None
