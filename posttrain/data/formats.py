"""Which columns play which part, and how a record becomes a Row. Rows are judged here one by one, never changed."""

from __future__ import annotations

import difflib
from collections.abc import Sequence as Many
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import RowError, UserError
from ..core.sequence import Row
from .messages import check_order, json_value, plain_text, read_messages, read_tools, shown

# What a column can be named to play, and what that means; the keys of the setting `columns`.
PARTS = {
    "messages": "a list of messages (role/content or from/value)",
    "prompt": "what the user says: text, or a list of messages",
    "input": "more of what the user says, put below the prompt",
    "response": "the answer: text, or a list of messages",
    "system": "the system prompt",
    "history": "earlier [user, assistant] pairs",
    "tools": "JSON schemas of the tools",
    "text": "plain text, every token trained",
}


@dataclass(frozen=True)
class KnownFormat:
    """A known format: the column names that may fill each part it needs, and each it may have."""

    name: str
    needs: dict[str, tuple[str, ...]]
    may: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __str__(self) -> str:
        text = ", ".join(" or ".join(names) for names in self.needs.values())
        extra = ", ".join(names[0] for names in self.may.values() if names)
        return f"{self.name}: {text}" + (f"; optional {extra}" if extra else "")


_SYSTEM, _TOOLS = ("system", "system_prompt"), ("tools",)
# The first that fits is taken: a set with `messages` and `prompt` is read by its messages.
KNOWN = (
    KnownFormat("messages", {"messages": ("messages",)}, {"system": _SYSTEM, "tools": _TOOLS}),
    KnownFormat("sharegpt", {"messages": ("conversations", "conversation")}, {"system": _SYSTEM, "tools": _TOOLS}),
    KnownFormat("alpaca", {"prompt": ("instruction",), "response": ("output", "response")},
          {"input": ("input", "context"), "system": _SYSTEM, "history": ("history",), "tools": _TOOLS}),
    KnownFormat("prompt/completion", {"prompt": ("prompt", "query"), "response": ("completion", "response", "answer")},
          {"input": (), "system": _SYSTEM, "history": ("history",), "tools": _TOOLS}),
    KnownFormat("question/answer", {"prompt": ("question",), "response": ("answer", "response")},
          {"input": (), "system": _SYSTEM, "history": ("history",), "tools": _TOOLS}),
    KnownFormat("text", {"text": ("text",)}),
)
_PAIRS = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))


@dataclass(frozen=True)
class Format:
    """A detected format: its name, part -> column, and the columns that it leaves unread."""

    name: str
    parts: dict[str, str]
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        used = ", ".join(c if c == p else f"{p}={c}" for p, c in self.parts.items())
        return f"{self.name} ({used})" + (f", not read: {', '.join(self.unused)}" if self.unused else "")

    @property
    def kind(self) -> str:
        return "text" if "text" in self.parts else "conversation"

    def to_row(self, raw: dict[str, Any], origin: str, source: int = 0) -> Row:
        """The validated Row; RowError at `origin` if a part is missing, no text, or out of order."""
        if "text" in self.parts:
            return Row("text", origin, source, text=self._text(raw, "text", origin))
        tools = read_tools(self._maybe(raw, "tools"), origin)
        if "messages" in self.parts:
            messages = read_messages(self._need(raw, "messages", origin), origin)
        else:
            messages = self._asked(raw, origin) + self._answered(raw, origin)
        messages = self._with_system(raw, messages, origin)
        check_order(messages, origin)
        return Row("conversation", origin, source, messages=messages, tools=tools)

    def _with_system(self, raw: dict[str, Any], messages: list[dict[str, Any]], origin: str) -> list[dict[str, Any]]:
        """The messages behind the system prompt that a column of its own may hold."""
        if self._maybe(raw, "system") in (None, ""):
            return messages
        if messages[:1] and messages[0]["role"] == "system":
            raise RowError("the row has two system prompts", where=origin,
                           found=f"column `{self.parts['system']}` and a system message", expected="one of them")
        return [{"role": "system", "content": self._text(raw, "system", origin)}, *messages]

    def _asked(self, raw: dict[str, Any], origin: str) -> list[dict[str, Any]]:
        """History and prompt as messages. Answers inside a prompt that is a list are read, not trained."""
        prompt = self._need(raw, "prompt", origin)
        messages = self._history(raw, origin)
        if isinstance(prompt, list):
            for message in read_messages(prompt, origin):
                messages.append({"weight": 0, **message} if message["role"] == "assistant" else message)
        else:
            prompt = self._text(raw, "prompt", origin)
            more = self._maybe(raw, "input")
            if more not in (None, "") and (more := self._text(raw, "input", origin)).strip():
                prompt = f"{prompt}\n{more}" if prompt else more
            messages.append({"role": "user", "content": prompt})
        return messages

    def _answered(self, raw: dict[str, Any], origin: str) -> list[dict[str, Any]]:
        response = self._need(raw, "response", origin)
        if isinstance(response, list) and all(isinstance(m, dict) for m in response):
            return read_messages(response, origin)
        return [{"role": "assistant", "content": self._text(raw, "response", origin)}]

    def _history(self, raw: dict[str, Any], origin: str) -> list[dict[str, Any]]:
        column, pairs = self.parts.get("history"), json_value(self._maybe(raw, "history"), "the history", origin)
        messages: list[dict[str, Any]] = []
        if pairs is not None and not isinstance(pairs, list):
            raise RowError(f"column `{column}` is no list of turns", where=origin, found=shown(pairs),
                           expected='[["question", "answer"], …]')
        for n, pair in enumerate(pairs or [], 1):
            if not isinstance(pair, list) or len(pair) != 2:
                raise RowError(f"turn {n} of column `{column}` is no pair", where=origin, found=shown(pair),
                               expected='["question", "answer"]')
            for role, text in zip(("user", "assistant"), pair, strict=True):
                messages.append({"role": role, "content": plain_text(text, f"turn {n} of column `{column}`", origin)})
        return messages

    def _maybe(self, raw: dict[str, Any], part: str) -> Any:
        return raw.get(self.parts[part]) if part in self.parts else None

    def _need(self, raw: dict[str, Any], part: str, origin: str) -> Any:
        column = self.parts[part]
        if column not in raw:
            raise RowError(f"the row has no column `{column}`", where=origin, found=", ".join(raw) or "no columns",
                           expected=f"`{column}`, as in the other rows of this {self.name} data",
                           fix="mend the row, or set bad_rows=skip")
        return raw[column]

    def _text(self, raw: dict[str, Any], part: str, origin: str) -> str:
        return plain_text(self._need(raw, part, origin), f"column `{self.parts[part]}`", origin)


def detect(columns: Many[str], sample: Many[dict[str, Any]], overrides: dict[str, str] | None = None) -> Format:
    """The format that these columns make, with `overrides` (part -> column) taken first.

    UserError if a named column is not there, if the rows are preference data, or if no format fits: then it shows the
    columns, the nearest format and how to name them.
    """
    overrides = overrides or {}
    check_overrides(columns, overrides)
    if not set(overrides) & {"messages", "prompt", "response", "text"}:
        _refuse_preferences(columns, sample)
    if (found := fit_columns(KNOWN, columns, overrides)) is None:
        raise unknown_columns(columns, overrides)
    name, parts = found
    return Format(name, parts, tuple(c for c in columns if c not in parts.values()))


def fit_columns(formats: Many[KnownFormat], columns: Many[str], overrides: dict[str, str]
                ) -> tuple[str, dict[str, str]] | None:
    """Name of the first format that these columns make, and its part -> column; None where they make none."""
    for known in formats:
        allowed = {**known.needs, **known.may}
        parts = {part: overrides.get(part) or next((c for c in names if c in columns), None)
                 for part, names in allowed.items()}
        if set(overrides) <= set(allowed) and all(parts[part] for part in known.needs):
            parts = {part: column for part, column in parts.items() if column}
            named = bool(set(overrides) & set(known.needs))
            name = "prompt/response" if named and {"prompt", "response"} <= set(parts) else known.name
            return name, parts
    return None


def check_overrides(columns: Many[str], overrides: dict[str, str], parts: dict[str, str] = PARTS) -> None:
    """UserError where a part does not exist, or a column that is named to play one."""
    for part, column in overrides.items():
        where = f"columns: {part}={column}"
        if part not in parts:
            near = difflib.get_close_matches(part, parts, n=1, cutoff=0.5)
            raise UserError(f"`{part}` is no part that a column can play", where=where, expected=", ".join(parts),
                            fix=f"did you mean `{near[0]}`?" if near else known_columns(parts))
        if column not in columns:
            near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            raise UserError(f"no data has a column `{column}`", where=where, found=", ".join(columns),
                            fix=f"did you mean `{near[0]}`?" if near else "name one of the columns found")


def _refuse_preferences(columns: Many[str], sample: Many[dict[str, Any]]) -> None:
    for pair in _PAIRS:
        if set(pair) <= set(columns):
            value = next((row[pair[0]] for row in sample if row.get(pair[0])), None)
            prompt = next((c for c in ("prompt", "instruction", "question") if c in columns), None)
            part = "messages" if isinstance(value, list) else "response" if prompt else "text"
            name = f"--columns {part}={pair[0]}" + (f",prompt={prompt}" if part == "response" else "")
            fits = isinstance(value, list | str)
            raise UserError("these rows are preference pairs, which supervised fine-tuning does not read",
                            found=_few(columns), expected="conversations or texts",
                            fix=f"learn from both with posttrain dpo or posttrain reward; to train on the preferred "
                                f"answers alone: {name}" if fits else "learn from both with posttrain dpo or posttrain "
                                "reward, or write the preferred answers to a file of conversations")
    if {"messages", "label"} <= set(columns) or {"prompt", "completion", "label"} <= set(columns):
        labels = [row["label"] for row in sample if "label" in row]
        if labels and all(isinstance(x, bool) for x in labels):
            named = "messages=messages" if "messages" in columns else "prompt=prompt,response=completion"
            raise UserError("these rows are labelled good or bad, and supervised fine-tuning would train on both",
                            found=f"column `label`: {labels.count(True)} true, {labels.count(False)} false in the "
                                  f"first {len(labels)} rows", expected="conversations or texts",
                            fix=f"keep the rows whose label is true; or train on all of them: --columns {named}")


def _few(names: Many[str], most: int = 16) -> str:
    more = f", … ({len(names)} columns)" if len(names) > most else ""
    return ", ".join(list(names)[:most]) + more or "none"


def known_columns(parts: dict[str, str] = PARTS) -> str:
    """One line that says how to name columns."""
    answer = "response=ANSWER" if "response" in parts else "chosen=BETTER,rejected=WORSE"
    return f"name the columns, for example --columns prompt=QUESTION,{answer} (parts: {', '.join(parts)})"


def unknown_columns(columns: Many[str], overrides: dict[str, str], formats: Many[KnownFormat] = KNOWN,
                    parts: dict[str, str] = PARTS) -> UserError:
    """The error for columns that make no format: the nearest one, and a guess at what to write."""
    def guess(names: tuple[str, ...], among: Many[str] = columns) -> tuple[float, str]:
        return max(((difflib.SequenceMatcher(None, name, c.lower()).ratio(), c) for name in names for c in among),
                   default=(0.0, ""), key=lambda scored: scored[0])

    def score(known: KnownFormat) -> float:
        return sum(guess(names)[0] for names in known.needs.values()) / len(known.needs)

    nearest, named = max(formats, key=score), dict(overrides)
    for part, names in nearest.needs.items():
        if part not in named:
            ratio, column = guess(names, [c for c in columns if c not in named.values()])
            named[part] = column if ratio >= 0.5 else part.upper()
    example = ",".join(f"{p}={c}" for p, c in named.items())
    example = f"'{example}'" if " " in example else example
    return UserError("no known format has these columns", found=_few(columns),
                     expected=f"the nearest format is {nearest}",
                     fix=f"name the columns: --columns {example} (parts: {', '.join(parts)})")
