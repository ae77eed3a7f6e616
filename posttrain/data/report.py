"""What `posttrain data check` found, for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from .ledger import Ledger

LISTED = 1000  # malformed rows and examples that the JSON lists; the counts are always whole
PRINTED = 3  # of each finding in the terminal


@dataclass
class Finding:
    """One kind of fault: how many rows, what it is, and where they begin (a duplicate as `copy = original`)."""

    kind: str
    count: int
    message: str
    rows: list[str] = field(default_factory=list)

    def within(self, role: str) -> Finding:
        return replace(self, message=f"{role}: {self.message}")

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "count": self.count, "message": self.message, "rows": self.rows[:LISTED]}


@dataclass
class Report:
    """Sources with their formats, the ledger of one pass over `data`, lengths in tokens, and the findings.

    `lengths`: min, median, p90, p95, p99, max of rendered tokens per row; `fits_99`: the smallest max_length at which
    99 % of the conversations keep every token; `malformed`: file, line, reason, found, fix of each such row.
    """

    sources: list[dict[str, Any]]
    ledger: Ledger
    lengths: dict[str, int]
    fits_99: int | None
    max_length: int
    thinking: bool | None
    why: str
    malformed: list[dict[str, Any]] = field(default_factory=list)
    found: list[Finding] = field(default_factory=list)

    @property
    def findings(self) -> int:
        """How many kinds of fault were found; 0 is a clean bill."""
        return len(self.found)

    def to_json(self) -> dict[str, Any]:
        """Everything, with at most 1,000 rows of each list."""
        return {"sources": self.sources, "ledger": self.ledger.to_json(), "lengths": self.lengths,
                "max_length": self.max_length, "max_length_99": self.fits_99,
                "enable_thinking": self.thinking, "enable_thinking_reason": self.why,
                "findings": [f.to_json() for f in self.found], "malformed": self.malformed[:LISTED]}

    def lines(self) -> list[str]:
        """The report as plain lines of text."""
        lines = []
        for s in self.sources:
            share = f", {s['share']:g} of every update" if s["share"] else ""
            unread = f"; not read: {', '.join(s['not_read'])}" if s["not_read"] else ""
            role = "eval_data " if s["role"] == "eval_data" else ""
            lines.append(f"{role}{s['data']}: {s['rows']:,} rows, {s['format']}{share}{unread}")
        rows, tokens = self.ledger.to_json()["rows"], self.ledger.to_json()["tokens"]
        dropped = "".join(f", {n:,} {reason}" for reason, n in rows["dropped"].items())
        lines.append(f"rows    {rows['read']:,} read = {rows['trained']:,} trained ({rows['cut']:,} cut) + "
                     f"{sum(rows['dropped'].values()):,} dropped{dropped}")
        lines.append(f"tokens  {tokens['rendered']:,} rendered = {tokens['trained']:,} trained + "
                     f"{tokens['masked']:,} masked + {tokens['cut']:,} cut + {tokens['dropped']:,} dropped")
        if self.lengths:
            lines.append("length  " + ", ".join(f"{name} {n:,}" for name, n in self.lengths.items()) + " tokens a row")
        if self.fits_99:
            lines.append(f"        max_length {self.fits_99:,} would keep 99 % of the conversations whole "
                         f"(now {self.max_length:,})")
        switch = {None: "as the template has it", True: "on", False: "off"}[self.thinking]
        lines.append(f"thinking {switch}: {self.why}")
        for finding in self.found:
            lines.append(f"found   {finding.count:,} {finding.message}")
            lines += [f"        {row}" for row in finding.rows[:PRINTED]]
            if len(finding.rows) > PRINTED:
                lines.append(f"        … {len(finding.rows) - PRINTED:,} more")
        lines.append("nothing found" if not self.found else f"{self.findings} kinds of finding")
        return lines

    def print(self, console: Any) -> None:
        """Print the report on a rich console, as it stands: brackets in a path are no markup."""
        for line in self.lines():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
