"""How many questions a model answers to the letter: what the learning benches share."""

from __future__ import annotations

from collections.abc import Sequence

import posttrain
from posttrain.eval.held_out import Question, score


def right(model, *sets: Sequence[Question]) -> list[float]:
    """Share of each set of questions that a model (run, folder or name) answers to the letter, greedily."""
    assistant = posttrain.load(model)
    return [score(assistant.model, assistant.forward, assistant.renderer, questions)[0].exact_match
            for questions in sets]
