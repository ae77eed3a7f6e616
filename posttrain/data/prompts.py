"""Rows whose prompts are to be answered by the model: read from any format, rendered up to where an answer begins."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

import numpy as np

from ..core.errors import RowError, UserError
from ..core.sequence import PROMPT, Row, Sequence
from .formats import Format, detect, known_columns
from .messages import check_order, read_messages, read_tools
from .render import Renderer
from .weigh import TOO_LONG, Rendered

EMPTY_PROMPT = "empty prompt"
PROMPTS = ("prompt", "question", "instruction", "query", "problem")
ANSWERS = ("response", "answer", "output", "completion", "solution")
NO_ANSWER = "\0answer"  # no column of a file has this name


class PromptFormat:
    """Another format's columns, read for their prompts: `to_row` gives rows of kind `prompt`."""

    kind = "prompt"

    def __init__(self, inner: Format):
        self.inner, self.name, self.parts = inner, inner.name, inner.parts

    def __str__(self) -> str:
        return f"{self.inner}, for its prompts"

    def to_row(self, raw: dict[str, Any], origin: str, source: int = 0) -> Row:
        """Messages up to where the last answer stood, and the record as it was read, with its `answer`.

        A row's own answer is no part of the prompt: checkers compare with it
        (test_prompts.py::test_the_answer_is_no_part_of_the_prompt).
        """
        messages, tools = self._conversation(raw, origin)
        last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=None)
        answer = None
        if last is not None and not any(m["role"] == "user" for m in messages[last:]):
            messages, answer = messages[:last], messages[last].get("content")
        if not any(m["role"] == "user" for m in messages):
            raise RowError("the row has no prompt to answer", where=origin, found=", ".join(raw) or "no columns",
                           expected="something that a user said", fix="mend the row, or set bad_rows=skip")
        known = answer is None or isinstance(raw.get("answer"), str)
        return Row("prompt", origin, source, messages=messages, tools=tools,
                   raw=dict(raw) if known else {**raw, "answer": answer})

    def _conversation(self, raw: dict[str, Any], origin: str) -> tuple[list[dict[str, Any]], list | None]:
        """The messages, of which the last need be no answer."""
        parts = self.parts
        if "messages" in parts:
            messages = read_messages(raw.get(parts["messages"]), origin)
            if system := raw.get(parts.get("system", "")):
                messages = [{"role": "system", "content": system}, *messages]
            open_end = not messages or messages[-1]["role"] != "assistant"
            check_order(messages + ([{"role": "assistant", "content": ""}] if open_end else []), origin)
            return messages, read_tools(raw.get(parts.get("tools", "")), origin)
        if raw.get(parts.get("response", "")) is not None:
            made = self.inner.to_row(raw, origin)
            return made.messages, made.tools
        made = Format(self.name, {**parts, "response": NO_ANSWER}).to_row({**raw, NO_ANSWER: ""}, origin)
        return made.messages[:-1], made.tools


def detect_prompts(columns: Many[str], sample: Many[dict[str, Any]],
                   overrides: dict[str, str] | None = None) -> PromptFormat:
    """The format of rows that need no answer: any that supervised fine-tuning reads, or a column of prompts."""
    overrides = overrides or {}
    prompt = overrides.get("prompt") or next((c for c in PROMPTS if c in columns), None)
    try:
        found = detect(columns, sample, overrides)
        if "text" not in found.parts:
            return PromptFormat(found)
    except RowError:
        raise
    except UserError:
        if prompt is None and not set(columns) & {"prompt", *PROMPTS}:
            raise
    if prompt is None:
        raise UserError("the rows have no prompt to answer", found=", ".join(columns) or "no columns",
                        expected="a column of prompts, or conversations", fix=known_columns())
    answer = overrides.get("response") or next((c for c in ANSWERS if c in columns), "")
    parts = {"prompt": prompt, "response": answer, "system": overrides.get("system", "system"), "tools": "tools"}
    return PromptFormat(Format("prompts", {part: column for part, column in parts.items() if column in columns}))


class PromptRenderer(Renderer):
    """Rows of kind `prompt` -> the ids that generation is given; no token weighs anything.

    A prompt longer than max_length, or of nothing but space, is a counted drop.
    """

    def render(self, rows: list[Row]) -> list[Rendered | RowError]:
        made: list[Rendered | RowError] = []
        for row in rows:
            try:
                ids = self.prompt(row.messages, row.tools)
            except RowError as e:
                made.append(RowError(e.message, where=row.origin, found=e.found, expected=e.expected, fix=e.fix))
                continue
            asked = next((m.get("content") for m in reversed(row.messages) if m["role"] == "user"), "")
            dropped = TOO_LONG if len(ids) > self.max_length else (
                EMPTY_PROMPT if isinstance(asked, str) and not asked.strip() else None)
            size = len(ids)
            sequence = Sequence(np.asarray(ids, np.int32), np.zeros(size, np.float32),
                                np.full(size, PROMPT, np.uint8), row.origin, row.source, row=row)
            made.append(Rendered([] if dropped else [sequence], dropped, size))
        return made
