"""What crosses from the data worker to the training loop: plain data, pickled over our own pipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..core.errors import RowError
from ..core.sequence import Sequence
from .judge import MALFORMED
from .ledger import Ledger
from .weigh import NOTHING_TRAINED


@dataclass(slots=True)
class Outcome:
    """What one row became: sequences that train something, or the reason why it was dropped."""

    origin: str
    sequences: list[Sequence] = field(default_factory=list)
    rendered: int = 0
    cut: int = 0
    was_cut: bool = False
    dropped: str | None = None
    error: RowError | None = None
    notes: tuple[str, ...] = ()
    together: bool = False

    @classmethod
    def of(cls, origin: str, made: Any) -> Outcome:
        """From what reading or rendering gave: a RowError, or a Rendered; one that trains nothing is dropped."""
        if isinstance(made, RowError):
            return cls(made.where or origin, dropped=MALFORMED, error=made)
        used = any(s.trained or s.row is not None for s in made.sequences)
        dropped = made.dropped or (None if used else NOTHING_TRAINED)
        if dropped:
            return cls(origin, rendered=made.rendered, dropped=dropped, notes=getattr(made, "notes", ()))
        return cls(origin, made.sequences, made.rendered, made.cut, made.was_cut, notes=getattr(made, "notes", ()),
                   together=getattr(made, "together", False))

    def atoms(self) -> list[list[Sequence]]:
        """Sequences that must share a pack: all of a row whose answers are compared, else each for itself."""
        return [self.sequences] if self.together and self.sequences else [[s] for s in self.sequences]

    def count(self, ledger: Ledger) -> None:
        """Enter the row into a ledger."""
        if self.dropped:
            ledger.drop(self.dropped, rendered=self.rendered)
        else:
            ledger.add(self.sequences, rendered=self.rendered, cut=self.cut, was_cut=self.was_cut)

    def record(self) -> dict[str, Any]:
        """The dropped row as a line of `rejected.jsonl`: file, line, reason, and what was found where known."""
        file, _, line = self.origin.rpartition(":")
        made: dict[str, Any] = {"file": file, "line": int(line), "reason": self.dropped}
        if self.error:
            made["reason"] = self.error.message
        found = self.error.found if self.error else f"{self.rendered} tokens" if self.rendered else ""
        return made | ({"found": found} if found else {})


@dataclass(slots=True)
class Batch:
    """The rows of one update. `step` counts from 1: the updates done once this one is; `epoch` is what they add up to.

    `ledger` is what these rows add to the run's; `rejected` has one record (file, line, reason, found where known) per
    row dropped here for the first time: a row that comes again in a later pass is counted again, not listed again.
    `atoms` (sequences that must share a pack; of most rows each sequence is one) is empty where every row was dropped.
    """

    step: int
    epoch: float
    epoch_ends: bool
    atoms: list[list[Sequence]]
    ledger: Ledger
    rejected: list[dict[str, Any]]

    @property
    def sequences(self) -> list[Sequence]:
        return [s for atom in self.atoms for s in atom]


@dataclass(slots=True)
class HeldRows:
    """The rows of validation as atoms of sequences, with a ledger of their own that is no part of the run's."""

    atoms: list[list[Sequence]]
    ledger: Ledger
    rejected: list[dict[str, Any]]

    @property
    def sequences(self) -> list[Sequence]:
        return [s for atom in self.atoms for s in atom]


@dataclass(slots=True)
class Opened:
    """The sources (spec, rows, held_out, share, format, columns not read) and what the order over them comes to."""

    sources: list[dict[str, Any]]
    total: int
    updates_per_epoch: int
    rows_per_epoch: int


def settle(outcomes: list[Outcome]) -> tuple[list[list[Sequence]], Ledger]:
    """Atoms of all rows in their order, their sequences numbered, and the rows' ledger: [rows] -> [atoms]."""
    ledger = Ledger()
    for outcome in outcomes:
        outcome.count(ledger)
    ledger.check()
    atoms = [atom for o in outcomes for atom in o.atoms()]
    for number, sequence in enumerate(s for atom in atoms for s in atom):
        sequence.number = number
    return atoms, ledger
