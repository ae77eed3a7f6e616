"""What became of every row and every token that updates consumed. It balances, or the run stops."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UserError
from ..core.sequence import Sequence


@dataclass
class Ledger:
    """Counts of rows and tokens; a row counts each time an update consumes it.

    rows:   read = trained + sum of dropped          (cut rows are among the trained)
    tokens: rendered = trained + masked + cut + dropped
    Both sides are counted on their own, so that `check` can find a row that went missing
    (test_ledger.py::test_a_lost_row_is_found).
    """

    rows_read: int = 0
    rows_trained: int = 0
    rows_cut: int = 0
    rows_dropped: dict[str, int] = field(default_factory=dict)
    rendered: int = 0
    trained: int = 0
    masked: int = 0
    cut: int = 0
    dropped: int = 0

    def add(self, sequences: Iterable[Sequence], *, rendered: int, cut: int = 0, was_cut: bool = False) -> None:
        """Count one trained row: its sequences, the tokens rendered for it, and those cut off."""
        self.rows_read += 1
        self.rows_trained += 1
        self.rows_cut += was_cut
        self.rendered += rendered
        self.cut += cut
        for s in sequences:
            trained = s.trained
            self.trained += trained
            self.masked += len(s) - trained

    def drop(self, reason: str, *, rendered: int = 0) -> None:
        """Count one dropped row with its reason; `rendered` are its tokens, 0 where it never became any."""
        self.rows_read += 1
        self.rows_dropped[reason] = self.rows_dropped.get(reason, 0) + 1
        self.rendered += rendered
        self.dropped += rendered

    def merge(self, other: Ledger) -> None:
        """Add what another ledger counted."""
        for name, value in vars(other).items():
            if name != "rows_dropped":
                setattr(self, name, getattr(self, name) + value)
        for reason, count in other.rows_dropped.items():
            self.rows_dropped[reason] = self.rows_dropped.get(reason, 0) + count

    @property
    def lost(self) -> float:
        """Share of the rows read that were dropped, 0 … 1."""
        return sum(self.rows_dropped.values()) / self.rows_read if self.rows_read else 0.0

    def check(self) -> None:
        """Stop the run if a row or a token is unaccounted for."""
        rows = self.rows_trained + sum(self.rows_dropped.values())
        tokens = self.trained + self.masked + self.cut + self.dropped
        if rows != self.rows_read:
            raise UserError("the ledger does not balance", where="rows", found=f"{self.rows_read} read",
                            expected=f"{rows} = trained + dropped", fix="this is a bug: please report these numbers")
        if tokens != self.rendered:
            raise UserError("the ledger does not balance", where="tokens", found=f"{self.rendered} rendered",
                            expected=f"{tokens} = trained + masked + cut + dropped",
                            fix="this is a bug: please report these numbers")

    def to_json(self) -> dict[str, Any]:
        """The dict of `ledger.json`; reasons in the order of the alphabet."""
        return {"rows": {"read": self.rows_read, "trained": self.rows_trained, "cut": self.rows_cut,
                         "dropped": dict(sorted(self.rows_dropped.items()))},
                "tokens": {"rendered": self.rendered, "trained": self.trained, "masked": self.masked,
                           "cut": self.cut, "dropped": self.dropped}}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> Ledger:
        """The ledger that `to_json` wrote."""
        rows, tokens = saved["rows"], saved["tokens"]
        return cls(rows["read"], rows["trained"], rows["cut"], dict(rows["dropped"]), tokens["rendered"],
                   tokens["trained"], tokens["masked"], tokens["cut"], tokens["dropped"])
