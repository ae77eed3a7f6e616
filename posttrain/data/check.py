"""`posttrain data check`: the very checks of a run, over every row instead of the first ones."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np

from ..core.errors import RowError, UserError
from ..core.sequence import Row
from .batch import Outcome
from .judge import EMPTY, MALFORMED, OVERLONG, check_lost
from .ledger import Ledger
from .read import Source
from .report import LISTED, Finding, Report
from .updates import CHUNK, Updates

ABSENT = ("no input", "noinput", "no input required", "no input needed", "no input provided", "n/a", "none", "na")


def check(settings: Any, spec: Any, *, make_renderer: Callable[..., Any] | None = None,
          progress: Callable[[int, int], None] | None = None) -> Report:
    """Read and render every row of `data` and `eval_data` once, and say what is wrong with them.

    settings: Settings; spec: the tokenizer's -> Report. `progress(rows done, rows in all)` is called as it goes.
    UserError only where a run could not begin at all (no such file, no known format); rows that would stop it are
    findings. Thinking switch and head are those of the run.
    """
    updates = Updates(settings.model_copy(update={"bad_rows": "skip"}))
    from .render import rendering

    make = partial(_Patient, make_renderer or rendering(settings, spec))
    head = updates.head(make)
    renderer = updates.renderer
    total, done = sum(map(len, [*updates.sources, *updates.eval_sources])), 0

    def advance(rows: int) -> None:
        nonlocal done
        done += rows
        if progress:
            progress(done, total)

    data, held = _Tally(updates.sources, renderer), _Tally(updates.eval_sources, renderer)
    data.run(advance)
    held.run(advance)
    report = Report(
        sources=[_describe(s, "data") for s in updates.sources] +
                [_describe(s, "eval_data") for s in updates.eval_sources],
        ledger=data.ledger, lengths=_quantiles(data.lengths), fits_99=_fits(data.fitting),
        max_length=settings.max_length, thinking=head.thinking, why=head.why,
        malformed=data.malformed + held.malformed)
    report.found = [*_stops(settings, head, data), *data.findings(), *_leaks(data, held),
                    *(f.within("eval_data") for f in held.findings())]
    return report


class _Patient:
    """A renderer whose failed proofs are faults of their rows: a run stops at the first, a check lists them all."""

    def __init__(self, make: Callable[..., Any], **settings: Any):
        self.renderer = make(**settings)
        self.spec, self.follows = self.renderer.spec, self.renderer.follows

    def render(self, rows: list[Row]) -> list[Any]:
        try:
            return self.renderer.render(rows)
        except UserError:
            return [self._one(row) for row in rows]

    def _one(self, row: Row) -> Any:
        try:
            return self.renderer.render([row])[0]
        except UserError as e:
            return RowError(e.message, where=row.origin, found=e.found, expected=e.expected, fix=e.fix)


def _describe(source: Source, role: str) -> dict[str, Any]:
    said = source.describe()
    return {"data": said.pop("spec"), "role": role, "sha256": source.fingerprint()} | said


def _quantiles(lengths: array) -> dict[str, int]:
    """Rendered tokens per row: the smallest, the largest, and those that 50, 90, 95, 99 % of the rows do not exceed."""
    if not lengths:
        return {}
    at = np.quantile(lengths, [0, .5, .9, .95, .99, 1], method="inverted_cdf").astype(int).tolist()
    return dict(zip(("min", "median", "p90", "p95", "p99", "max"), at, strict=True))


def _fits(lengths: array) -> int | None:
    """The smallest max_length at which 99 % of the conversations keep every token."""
    return int(np.quantile(lengths, .99, method="inverted_cdf")) if lengths else None


def _digest(*parts: Any) -> int:
    return int.from_bytes(blake2b(repr(parts).encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


class _Tally:
    """What one pass over some sources counts; 16 bytes of memory a row beside the lengths.

    `whole` and `asked` are 64-bit digests per row: of all that is trained on, and of what precedes the last answer.
    Two different rows share one by accident with a chance of n^2 / 4e19: 3e-8 for a million rows.
    """

    def __init__(self, sources: list[Source], renderer: Any):
        self.sources, self.renderer, self.ledger = sources, renderer, Ledger()
        self.lengths, self.fitting = array("q"), array("q")
        self.whole, self.asked = array("Q"), array("Q")
        self.places: tuple[array, array] = (array("q"), array("q"))  # source and row of each digest
        self.malformed: list[dict[str, Any]] = []
        self.groups: dict[str, Finding] = {}
        self.compares = False  # prompts apart from their answers: one may well stand in several rows

    def run(self, progress: Callable[[int], None]) -> None:
        """Every row of every source, 512 at a time."""
        for s, source in enumerate(self.sources):
            for at in range(0, len(source), CHUNK):
                indices = range(at, min(at + CHUNK, len(source)))
                rows = [self._read(source, i) for i in indices]
                made = iter(self.renderer.render([r for r in rows if isinstance(r, Row)]))
                for i, row in zip(indices, rows, strict=True):
                    result = next(made) if isinstance(row, Row) else row
                    outcome = Outcome.of(source.origin(i), result)
                    self._count(outcome, source.origin(i))
                    for note in getattr(result, "notes", ()):
                        self._note("not rendered", note, source.origin(i))
                    if isinstance(row, Row):
                        self._look(s, i, row, outcome)
                progress(len(indices))

    def _read(self, source: Source, i: int) -> Row | RowError:
        try:
            raw = source[i]
            row = source.format.to_row(raw.values, raw.origin, source.index)
        except RowError as e:
            e.where = e.where or source.origin(i)
            return e
        column = source.format.parts.get("input")
        if column and _says_none(raw.values.get(column)):
            self._note("spelled-out input", f"column `{column}` spells out that there is no input: leave it empty",
                       raw.origin)
        return row

    def _count(self, outcome: Outcome, origin: str) -> None:
        outcome.count(self.ledger)
        if outcome.error:
            if len(self.malformed) < LISTED:
                self.malformed.append({**outcome.record(), "fix": outcome.error.fix})
            self._note("malformed", outcome.error.message, origin)
        elif outcome.dropped and outcome.dropped != EMPTY:
            self._note(outcome.dropped, f"dropped: {outcome.dropped}", origin)
        if outcome.was_cut:
            self._note("cut", "cut to max_length, from the end of the conversation", origin)

    def _look(self, s: int, i: int, row: Row, outcome: Outcome) -> None:
        """What is to be seen in the row itself: its length, its digests, and empty turns."""
        if not outcome.error:
            self.lengths.append(outcome.rendered)
            if row.kind == "conversation":
                self.fitting.append(outcome.rendered)
        messages = [{k: v for k, v in m.items() if k != "weight"} for m in row.messages]
        last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=0)
        alone = bool(row.answers) or row.kind == "prompt"
        self.whole.append(_digest(row.text, row.tools, messages, row.answers, row.raw.get("answer")))
        self.asked.append(_digest(row.tools, messages if alone else messages[:last]) if messages else self.whole[-1])
        self.places[0].append(s)
        self.places[1].append(i)
        self.compares |= alone
        answered = [m for answer in row.answers for m in answer]
        empty = {m["role"] for m in messages + answered if not m["content"].strip() and not m.get("tool_calls")}
        if "assistant" in empty:
            self._note(EMPTY, "empty answers", row.origin)
        if "user" in empty:
            self._note("empty question", "empty questions", row.origin)
        if row.kind == "text" and not row.text.strip():
            self._note("empty text", "empty texts", row.origin)

    def _note(self, kind: str, message: str, origin: str) -> None:
        group = self.groups.setdefault(message, Finding(kind, 0, message))
        group.count += 1
        if len(group.rows) < LISTED:
            group.rows.append(origin)

    def origin(self, k: int) -> str:
        """PATH:N of the row that made digest k."""
        return self.sources[self.places[0][k]].origin(self.places[1][k])

    def findings(self) -> list[Finding]:
        """Malformed and lost rows first, then duplicates and contradictions."""
        order = ("malformed", *sorted(OVERLONG), "cut", EMPTY)
        rank = {kind: n for n, kind in enumerate(order)}
        return [*sorted(self.groups.values(), key=lambda g: rank.get(g.kind, len(rank))), *_repeats(self)]


def _says_none(value: Any) -> bool:
    return isinstance(value, str) and value.strip(" \t\r\n<>[]()\"'.*-").lower() in ABSENT


def _runs(values: np.ndarray) -> Iterator[np.ndarray]:
    """Index sets of equal values that stand more than once, in order of first appearance."""
    order = np.argsort(values, kind="stable")
    edges = np.flatnonzero(np.diff(values[order])) + 1
    groups = [g for g in np.split(order, edges) if len(g) > 1]
    yield from sorted(groups, key=lambda g: int(g[0]))


def _repeats(tally: _Tally) -> Iterator[Finding]:
    """Exact duplicates (rows beyond the first of their kind), and one question with several answers."""
    whole, asked = np.array(tally.whole, np.uint64), np.array(tally.asked, np.uint64)
    copies = [(int(g[0]), int(k)) for g in _runs(whole) for k in g[1:]]
    if copies:
        yield Finding("duplicate", len(copies), "exact duplicates of an earlier row",
                      [f"{tally.origin(k)} = {tally.origin(first)}" for first, k in copies])
    rivals = []
    for group in _runs(asked) if not tally.compares else ():
        _, firsts = np.unique(whole[group], return_index=True)
        if len(firsts) > 1:
            rivals.append(sorted(int(group[f]) for f in firsts))
    if rivals:
        yield Finding("contradiction", sum(map(len, rivals)),
                      f"different answers to the same prompt ({len(rivals):,} prompts)",
                      [" ≠ ".join(tally.origin(k) for k in group[:3]) for group in rivals])


def _leaks(data: _Tally, held: _Tally) -> Iterator[Finding]:
    known = set(data.asked)
    seen = [held.origin(k) for k, digest in enumerate(held.asked) if digest in known]
    if seen:
        yield Finding("leak", len(seen), "rows of eval_data whose prompt also stands in data", seen)


def _stops(settings: Any, head: Any, data: _Tally) -> Iterator[Finding]:
    """What would stop the run itself, in the words of its error."""
    if data.malformed and settings.bad_rows == "error":
        first = data.malformed[0]
        yield Finding("stops the run", data.ledger.rows_dropped[MALFORMED], "malformed rows stop the run: mend them, "
                      "or set bad_rows=skip", [f"{first['file']}:{first['line']}"])
    for ledger, judged in ((head.ledger, head), (data.ledger, None)):
        try:
            check_lost(ledger, settings, judged)
        except UserError as e:
            first = [w for w in judged.first_lost.values() if e.where.startswith(w)] if judged else []
            yield Finding("stops the run", sum(ledger.rows_dropped.values()), f"{e.message}: {e.found}; {e.fix}",
                          first[:1])
            break
