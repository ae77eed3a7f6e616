"""The template's thinking switch for a run: as set, or the one under which rendered answers follow their prompts."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.sequence import Row
from .render import Renderer

SAMPLE = 64  # rows tried under each value of the switch


def choose_thinking(setting: str, renderer: Renderer, rows: Iterable[Row]) -> tuple[bool | None, str]:
    """Value of the switch (None: the template's own default) and why.

    `auto` takes the template's default wherever it fits, because everybody who serves the model asks with it. Where no
    value fits every row, each answer is trained under the one that fits it (spans.py::Finder.switches).
    """
    if setting != "auto":
        return setting == "true", "as set"
    if not renderer.spec.chat.switches:
        return None, "the chat template has no such switch"
    sample = [r for r in rows if r.kind == "conversation" and any(m.get("role") == "assistant" for m in r.messages)]
    sample = sample[:SAMPLE]
    thinks = sum(any(m.get("reasoning_content") or "</think>" in str(m.get("content")) for m in r.messages
                     if m.get("role") == "assistant") for r in sample)
    for value in (None, thinks > 0, thinks == 0):
        if all(renderer.follows(row, value) for row in sample):
            if value is None:
                return None, "its prompts fit these rows"
            what = f"{thinks} of the first {len(sample)} rows carry" if thinks else (
                f"none of the first {len(sample)} rows carries")
            return value, f"{what} reasoning, and the template's default prompt does not fit that"
    return None, (f"{thinks} of the first {len(sample)} rows carry reasoning: each answer is trained under the switch "
                  "that fits it, and prompts get the template's default")
