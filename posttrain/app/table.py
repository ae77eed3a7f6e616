"""The first rows of the data as a table of prompts and responses."""

from __future__ import annotations

from itertools import islice
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.core.config import Settings
from posttrain.core.sequence import Row
from posttrain.data.read import each_row, open_sources

LONG = 500  # characters of a cell


def first_rows(settings: Settings, limit: int) -> list[Row]:
    """The first `limit` rows over all of `data`, in file order; a malformed one follows `bad_rows`."""
    sources = open_sources(settings.data, columns=settings.columns, objective=settings.objective,
                           ranked_pairs=settings.ranked_pairs)
    return list(islice((row for row in each_row(sources, settings.bad_rows) if isinstance(row, Row)), limit))


def as_json(row: Row) -> dict[str, Any]:
    """Origin with prompt and response, with prompt and answers (the best first), or with the text."""
    if row.kind == "text":
        return {"origin": row.origin, "text": row.text}
    if row.answers:
        return {"origin": row.origin, "prompt": prompt_text(row), "answers": answer_texts(row)}
    return {"origin": row.origin, "prompt": prompt_text(row), "response": response_text(row)}


def as_table(rows: list[Row]) -> Table:
    """One line per row: where it stands, what is asked, what is answered."""
    table = Table(show_lines=True, expand=True)
    table.add_column("row", style="dim", overflow="fold", max_width=24)  # file and line; the JSON has the whole path
    if all(r.kind == "text" for r in rows):
        table.add_column("text", ratio=1)
    else:
        table.add_column("prompt", ratio=2)
        table.add_column("response", ratio=3)
    for row in rows:
        cells = [row.text or ""] if row.kind == "text" else [
            prompt_text(row), "\n\n".join(answer_texts(row)) if row.answers else response_text(row)]
        if row.kind == "text" and len(table.columns) == 3:
            cells = ["", *cells]
        table.add_row(Text(row.origin.rpartition("/")[2]), *(Text(_short(c)) for c in cells))
    return table


def prompt_text(row: Row) -> str:
    """Everything before the last answer; roles are named where there is more than one message."""
    before = row.messages if row.answers else row.messages[:_answer(row)]
    if len(before) == 1 and before[0]["role"] == "user":
        return before[0]["content"]
    return "\n".join(f"[{m['role']}] {_content(m)}" for m in before)


def response_text(row: Row) -> str:
    """The last answer; none where the row is a prompt alone."""
    return "".join(map(_content, row.messages[_answer(row):][:1]))


def answer_texts(row: Row) -> list[str]:
    """The answers that a row compares or judges, each with how it was judged."""
    named = [f"[{f['label']:g}] " if "label" in f else f"[{n}] " for n, f in enumerate(row.facts, 1)]
    return [name + "\n".join(_content(m) for m in answer) for name, answer in zip(named, row.answers, strict=True)]


def _answer(row: Row) -> int:
    return max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=len(row.messages))


def _content(message: dict[str, Any]) -> str:
    calls = [f"calls {c['function']['name']}({c['function']['arguments']})" for c in message.get("tool_calls") or []]
    return "\n".join([t for t in (message.get("content"),) if t] + calls)


def _short(text: str) -> str:
    return text if len(text) <= LONG else text[:LONG] + " …"
