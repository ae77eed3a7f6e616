"""Rows as the trainer sees them: token by token, trained or masked and why; for the terminal and as JSON lines."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text
from tokenizers.decoders import DecodeStream

from ..core.errors import RowError
from ..core.sequence import REASONS, Row, Sequence
from .render import Renderer
from .tokenizer import TokenizerSpec
from .weigh import Rendered

# Colour, and without colour: trained tokens are underlined, stops are bold, masked ones are plain.
STYLES = {"prompt": "dim", "untrained": "dim italic", "scaffold": "underline cyan", "content": "underline green",
          "stop": "bold underline magenta", "text": "underline green"}
MEANINGS = {"prompt": "given to the model", "untrained": "written by the template or an answer left out",
            "scaffold": "the template's own words around an answer", "content": "the answer",
            "stop": "ends the turn", "text": "plain text"}
CHUNK = 512


@dataclass(slots=True)
class Token:
    """One token as people read it; `weight` and `reason` are its own, as a target."""

    id: int
    text: str
    weight: float
    reason: str


@dataclass(slots=True)
class Shown:
    """One row picked for showing, and why: `first`, `longest`, `least trained`, `most cut`, `row N`."""

    why: str
    row: Row
    rendered: Rendered | RowError

    @property
    def origin(self) -> str:
        return self.row.origin


def tokens(sequence: Sequence, spec: TokenizerSpec) -> list[Token]:
    """The tokens of a sequence; their texts, joined, are the decoded sequence.

    Where several tokens share one character (most emoji), the last of them shows it and those before show nothing.
    """
    ids = sequence.ids.tolist()
    return [Token(i, t, w, REASONS[r]) for i, t, w, r in
            zip(ids, texts(ids, spec), sequence.weights.tolist(), sequence.reasons.tolist(), strict=True)]


def texts(ids: list[int], spec: TokenizerSpec) -> list[str]:
    """What each token adds to the decoded text."""
    backend, stream, made = spec.encoder.backend, DecodeStream(skip_special_tokens=False), []
    waiting: list[int] = []
    for i in ids:
        piece = stream.step(backend, i)
        waiting = [*waiting, i] if piece is None else []
        made.append(piece or "")
    if waiting:  # bytes that never became a character
        made[-1] = backend.decode(waiting, skip_special_tokens=False)
    return made


def to_json_line(sequence: Sequence, spec: TokenizerSpec) -> str:
    """One sequence as a line of JSON: {"origin", "tokens": [{"id", "text", "weight", "reason"}]}."""
    return json.dumps({"origin": sequence.origin, "tokens": [
        {"id": t.id, "text": t.text, "weight": t.weight, "reason": t.reason} for t in tokens(sequence, spec)]},
        ensure_ascii=False)


def render_all(rows: Iterable[Row], renderer: Renderer) -> Iterator[tuple[Row, Rendered | RowError]]:
    """Every row with what it becomes, in order; the rows are taken in chunks."""
    chunk: list[Row] = []
    for row in rows:
        chunk.append(row)
        if len(chunk) == CHUNK:
            yield from zip(chunk, renderer.render(chunk), strict=True)
            chunk = []
    if chunk:
        yield from zip(chunk, renderer.render(chunk), strict=True)


def pick(rendered: Iterable[tuple[Row, Rendered | RowError]], first: int | None, worst: int = 0) -> list[Shown]:
    """The first rows (None: all), then the worst of each kind: longest, least trained, most cut. One pass."""
    shown: list[Shown] = []
    kinds: dict[str, list] = {"longest": [], "least trained": [], "most cut": []}
    for n, (row, made) in enumerate(rendered):
        if first is None or n < first:
            shown.append(Shown("first", row, made))
        elif not worst:
            break
        if not worst or isinstance(made, RowError):
            continue
        for kind, badness in _badness(made).items():
            item = (badness, -n, Shown(kind, row, made))
            if badness > float("-inf"):
                (heapq.heappush if len(kinds[kind]) < worst else heapq.heappushpop)(kinds[kind], item)
    for heap in kinds.values():
        shown += [item for _, _, item in sorted(heap, key=lambda x: x[:2], reverse=True)]
    return shown


def _badness(made: Rendered) -> dict[str, float]:
    none = float("-inf")
    length = sum(map(len, made.sequences))
    share = sum(s.trained for s in made.sequences) / length if length else 0.0
    asks = any(s.row is not None for s in made.sequences)  # a prompt trains nothing by itself
    return {"longest": float(made.rendered), "least trained": -share if length and not asks else none,
            "most cut": float(made.cut) if made.cut else none}


def summary(made: Rendered | RowError) -> str:
    """One line on a row: how much of it is trained, or why none is; of a prompt its length."""
    if isinstance(made, RowError):
        return f"malformed: {made.message}" + (f" ({made.found})" if made.found else "")
    if made.dropped:
        return f"dropped: {made.dropped} ({made.rendered} tokens)"
    length, trained = sum(map(len, made.sequences)), sum(s.trained for s in made.sequences)
    if any(s.row is not None for s in made.sequences):
        return f"a prompt of {length} tokens, to be answered"
    parts = [f"{trained} of {length} tokens trained ({trained / length:.0%})"]
    if len(made.sequences) > 1:
        parts.append(f"{len(made.sequences)} sequences")
    if made.was_cut:
        parts.append(f"{made.cut} tokens cut")
    return ", ".join([*parts, *made.notes])


def visible(text: str) -> str:
    """A token's text with its line ends and tabs made visible; the line end itself is kept."""
    return text.replace("\r", "␍").replace("\t", "⇥\t").replace("\n", "↵\n")


def as_text(sequence: Sequence, spec: TokenizerSpec) -> Text:
    """A sequence for the terminal: trained stretches stand between ⟦ and ⟧, so they show without colour too."""
    line, open_ = Text(), False
    for token in tokens(sequence, spec):
        if (token.weight > 0) != open_:
            open_ = not open_
            line.append("⟦" if open_ else "⟧", style="bold")
        line.append(visible(token.text), style=STYLES[token.reason])
        if token.weight not in (0, 1):
            line.append(f"×{token.weight:g}", style="bold yellow")
    if open_:
        line.append("⟧", style="bold")
    line.rstrip()
    return line


def legend() -> Text:
    """What the styles and brackets mean."""
    line = Text("⟦trained⟧ ", style="bold")
    for reason in ("content", "scaffold", "stop", "text", "prompt", "untrained"):
        line.append(reason, style=STYLES[reason]).append(f" {MEANINGS[reason]}  ", style="")
    return line


def print_rows(console: Console, shown: list[Shown], spec: TokenizerSpec) -> None:
    """Rows in the terminal, each with its origin and a summary."""
    console.print(legend())
    for item in shown:
        console.print()
        console.rule(Text(item.why, style="bold"), align="left")
        console.print(Text(f"{item.origin}  ·  {summary(item.rendered)}", style="dim"), soft_wrap=True)
        for sequence in getattr(item.rendered, "sequences", ()):
            console.print(as_text(sequence, spec))


def print_sequence(console: Console, sequence: Sequence, spec: TokenizerSpec) -> None:
    """One sequence with its legend, as every run shows one at its start."""
    console.print(legend())
    console.print(as_text(sequence, spec))


def table(shown: list[Shown], spec: TokenizerSpec) -> list[dict[str, Any]]:
    """Shown rows as plain data, for the HTML page."""
    return [{"origin": s.origin, "why": s.why, "summary": summary(s.rendered),
             "sequences": [tokens(q, spec) for q in getattr(s.rendered, "sequences", ())]} for s in shown]
