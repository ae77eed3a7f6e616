"""Rows whose prompts are to be answered by the model: read from any format, up to where an answer begins."""

from __future__ import annotations

from collections.abc import Sequence as Many
from typing import Any

from ..core.errors import RowError, UserError
from ..core.sequence import Row
from .formats import PARTS, Format, check_overrides, detect, fit_columns, known_columns
from .messages import check_order, read_messages, read_tools
from .preferences import (
    CONTEXTS_DIFFER,
    LABEL_PARTS,
    LABELLED,
    PAIR_PARTS,
    PAIRS,
    RANKINGS,
    VOTES,
    Compared,
    Labelled,
    fit_judged,
)

PROMPTS = ("prompt", "question", "instruction", "query", "problem")
ANSWERS = ("response", "answer", "output", "completion", "solution")
NO_ANSWER = "\0answer"  # no column of a file has this name


class PromptFormat:
    """Another format's columns, read for their prompts: `to_row` gives rows of kind `prompt`."""

    kind = "prompt"

    def __init__(self, inner: Format):
        self.inner, self.name, self.parts, self.unused = inner, inner.name, inner.parts, inner.unused

    def __str__(self) -> str:
        return f"{self.inner}, for its prompts"

    def to_row(self, raw: dict[str, Any], origin: str, source: int = 0) -> Row:
        """Messages up to where the last answer stood, and the record as it was read, with its `answer`.

        A row's own answer is no part of the prompt: checkers compare with it
        (test_prompts.py::test_the_answer_is_no_part_of_the_prompt). Of a pair it is the better one.
        """
        row = self._judged(raw, origin) if isinstance(self.inner, Compared) else self._answered(raw, origin)
        if not row.dropped and not any(m["role"] == "user" for m in row.messages):
            raise RowError("the row has no prompt to answer", where=origin, found=", ".join(raw) or "no columns",
                           expected="something that a user said", fix="mend the row, or set bad_rows=skip")
        answer = row.answers[0][-1].get("content") if row.answers else None
        known = answer is None or isinstance(raw.get("answer"), str)
        return Row("prompt", origin, source, messages=row.messages, tools=row.tools, dropped=row.dropped,
                   raw=dict(raw) if known else {**raw, "answer": answer})

    def _judged(self, raw: dict[str, Any], origin: str) -> Row:
        """What the answers of a row share, and of the answers one that is said to be good."""
        row = self.inner.to_row(raw, origin)
        good = row.facts[0].get("label", "chosen" in self.parts)
        row.answers = row.answers[:1] if good else []
        row.dropped = row.dropped if row.dropped == CONTEXTS_DIFFER else None
        return row

    def _answered(self, raw: dict[str, Any], origin: str) -> Row:
        """A conversation without its last answer, and that answer if nobody spoke after it."""
        messages, tools = self._conversation(raw, origin)
        last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=None)
        if last is None or any(m["role"] == "user" for m in messages[last:]):
            return Row("prompt", origin, messages=messages, tools=tools)
        return Row("prompt", origin, messages=messages[:last], tools=tools, answers=[[messages[last]]])

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
        answer = raw.get(parts.get("response", ""))
        if answer is not None and not _lists_texts(answer):
            made = self.inner.to_row(raw, origin)
            return made.messages, made.tools
        made = Format(self.name, {**parts, "response": NO_ANSWER}).to_row({**raw, NO_ANSWER: ""}, origin)
        return made.messages[:-1], made.tools


def detect_prompts(columns: Many[str], sample: Many[dict[str, Any]],
                   overrides: dict[str, str] | None = None) -> PromptFormat:
    """The format of rows that need no answer: any that another objective reads, or a column of prompts."""
    overrides = overrides or {}
    check_overrides(columns, overrides, PARTS | PAIR_PARTS | LABEL_PARTS)
    if judged := _judged(columns, sample, overrides):
        return PromptFormat(judged)
    prompt = overrides.get("prompt") or next((c for c in PROMPTS if c in columns), None)
    ranked = fit_judged(RANKINGS, columns, sample, overrides)
    asked = {part: column for part, column in (ranked[1] if ranked else {}).items() if part in PARTS}
    try:
        found = detect(columns, sample, overrides)
        if "text" not in found.parts:
            return PromptFormat(found)
    except RowError:
        raise
    except UserError:
        if prompt is None and "messages" not in asked:
            raise
    if "messages" in asked:
        return PromptFormat(_format("ranked answers", asked, columns))
    if prompt is None:
        raise UserError("the rows have no prompt to answer", found=", ".join(columns) or "no columns",
                        expected="a column of prompts, or conversations", fix=known_columns())
    answer = overrides.get("response") or next((c for c in ANSWERS if c in columns), "")
    parts = {"prompt": prompt, "response": answer, "system": overrides.get("system", "system"), "tools": "tools"}
    parts = {part: column for part, column in parts.items() if column in columns}
    return PromptFormat(_format("ranked answers" if ranked else "prompts", {**asked, **parts}, columns))


def _judged(columns: Many[str], sample: Many[dict[str, Any]], overrides: dict[str, str]) -> Compared | None:
    """The format of two answers that are compared, or of one that is labelled true or false."""
    if found := fit_columns(PAIRS + VOTES, columns, overrides):
        return _format(*found, columns, Compared)
    if found := fit_columns(LABELLED, columns, overrides):
        labels = [row[found[1]["label"]] for row in sample if found[1]["label"] in row]
        if labels and all(isinstance(label, bool) for label in labels):
            return _format(*found, columns, Labelled)
    return None


def _format(name: str, parts: dict[str, str], columns: Many[str], kind: type[Format] = Format) -> Any:
    return kind(name, parts, tuple(c for c in columns if c not in parts.values()))


def _lists_texts(answer: Any) -> bool:
    """Whether a column of answers holds several of them, as rankings do, and no messages."""
    return isinstance(answer, list) and not (answer and all(isinstance(m, dict) for m in answer))
