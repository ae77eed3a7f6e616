"""Rows and sequences: what the data folder makes and everything after it consumes. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Why a token has its weight. Only scaffold, content, stop and text are ever trained.
REASONS = ("prompt", "scaffold", "content", "stop", "text", "untrained")
PROMPT, SCAFFOLD, CONTENT, STOP, TEXT, UNTRAINED = range(len(REASONS))


@dataclass(slots=True)
class Row:
    """One validated record. `origin` is PATH:N, N the 1-based line where it begins; `source` its index in `data`.

    conversation: `messages` as chat templates take them (role, content, and where present tool_calls,
    reasoning_content, weight), `tools` as JSON schemas. text: `text` alone. prompt: `messages` up to where
    an answer would stand, and `raw`, the record as it was read, with `answer` where the row has one. pair: `messages`
    is the prompt of all `answers` (each a list of messages), `facts` are numbers of each answer, the best first.
    label: the same with answers that are judged each for itself. `dropped` says why a row is dropped that could be
    read.
    """

    kind: str
    origin: str
    source: int = 0
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] | None = None
    text: str | None = None
    raw: dict[str, Any] = field(default_factory=dict)
    answers: list[list[dict[str, Any]]] = field(default_factory=list)
    facts: list[dict[str, float]] = field(default_factory=list)
    dropped: str | None = None


@dataclass(slots=True)
class Sequence:
    """Token ids with a weight and a reason per token, each belonging to the token as a target.

    ids [L] int32, weights [L] float32 (weights[0] is 0: nothing precedes it), reasons [L] uint8 into REASONS; `facts`
    are numbers that belong to the whole sequence, such as the rank of an answer; `number` is its place among the
    sequences of its update, whichever pack or rank it comes to lie in; `row` is what a prompt that is to be answered
    was made of.
    """

    ids: np.ndarray
    weights: np.ndarray
    reasons: np.ndarray
    origin: str
    source: int = 0
    facts: dict[str, float] = field(default_factory=dict)
    number: int = 0
    row: Row | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def trained(self) -> int:
        """Tokens with a weight other than 0."""
        return int(np.count_nonzero(self.weights))
