"""Whether too many rows would be lost, judged on the first rows in training order before the first update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import UserError
from ..core.sequence import Row, Sequence
from .ledger import Ledger
from .weigh import BEYOND, FIRST_TOO_LONG, TOO_LONG
from .weigh import EMPTY_ANSWER as EMPTY

HEAD_ROWS = 4000  # enough to see a loss of 5 % within 0.7 points (95 % interval), and rendered in seconds
KEEP = 0.99
MALFORMED = "malformed row"
OVERLONG = frozenset({TOO_LONG, FIRST_TOO_LONG, BEYOND})  # reasons that a larger max_length would take away


@dataclass
class Head:
    """What the first rows in training order became.

    `ledger` counts them; `lengths` are the rendered tokens of each row, ascending; `keep_99` is the smallest
    max_length that would keep 99 % of the rows, None where this one does or where none would; `thinking` is the
    template's switch for the whole run and `why` its reason; `example` is the first row's first sequence;
    `first_lost` names the first row lost to each reason; `notes` counts what rows hold and the template leaves out;
    `examples` are the first rows' first sequences; `updates` are the tokens of each update that these rows fill.
    """

    ledger: Ledger
    lengths: list[int]
    thinking: bool | None
    why: str
    example: Sequence | None = None
    keep_99: int | None = None
    first_lost: dict[str, str] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    updates: list[int] = field(default_factory=list)
    examples: list[Sequence] = field(default_factory=list)

    @property
    def trained_share(self) -> float:
        """Trained tokens by tokens in sequences, 0 … 1."""
        kept = self.ledger.trained + self.ledger.masked
        return self.ledger.trained / kept if kept else 0.0


def smallest_keeping(lost: list[tuple[Row, int]], rows: int, max_length: int,
                     drops: Callable[[list[Row], int], list[bool]]) -> int | None:
    """The smallest max_length that keeps 99 % of `rows`, of which `lost` (with their tokens) are overlong now.

    `drops(rows, max_length)` says which would still be dropped. None where even keeping them all is not asked for, by
    having 99 % already. Bisection: about log2(longest row) renderings of the rows in doubt.
    """
    allowed = int(rows * (1 - KEEP) + 1e-9)
    if len(lost) <= allowed:
        return None
    low, high = max_length, max(tokens for _, tokens in lost)  # low drops too many, high drops none
    doubt, sure = [row for row, _ in lost], 0  # `sure` are dropped at every length still possible
    while high - low > 1:
        middle = (low + high) // 2
        gone = drops(doubt, middle)
        too_short = sure + sum(gone) > allowed
        if too_short:
            low = middle
        else:
            high, sure = middle, sure + sum(gone)
        doubt = [row for row, g in zip(doubt, gone, strict=True) if g == too_short]
    return high


def check_lost(ledger: Ledger, settings: Any, head: Head | None = None) -> None:
    """Stop where more than `max_lost` of the rows are dropped; to be called on the head and at each epoch's end.

    On the whole run's ledger at an epoch's end this is the epoch's own share, since every epoch reads the same rows.
    """
    if not ledger.rows_read or ledger.lost <= settings.max_lost:
        return
    dropped = sorted(ledger.rows_dropped.items(), key=lambda kv: (-kv[1], kv[0]))
    count, overlong = sum(ledger.rows_dropped.values()), [kv for kv in dropped if kv[0] in OVERLONG]
    # three names for too long are one reason, with one remedy
    reason = overlong[0][0] if overlong and sum(n for _, n in overlong) >= dropped[0][1] else dropped[0][0]
    found = f"{count:,} of {'the first ' if head else ''}{ledger.rows_read:,} rows: " + ", ".join(
        f"{n:,} {name}" for name, n in dropped)
    first = head.first_lost.get(reason, "") if head else ""
    message = "all rows are dropped" if count == ledger.rows_read else "too many rows are dropped"
    raise UserError(f"{message}: {reason}", where=f"{first} is the first" if first else "data", found=found,
                    expected=f"at most {settings.max_lost:.3g} of the rows (max_lost)",
                    fix=_remedy(reason, settings, head, ledger.lost))


def _remedy(reason: str, settings: Any, head: Head | None, lost: float) -> str:
    allow = f"or allow it with max_lost: {min(1.0, -(-lost * 100 // 1) / 100):.2g}"
    if reason in OVERLONG:
        if head and head.keep_99:
            packs = settings.pack_tokens != "auto" and head.keep_99 > settings.pack_tokens
            both = f" and pack_tokens: {head.keep_99}" if packs else ""
            return f"set max_length: {head.keep_99}{both}, which would keep 99 % of the rows, {allow}"
        return f"raise max_length (now {settings.max_length}), {allow}"
    if reason == EMPTY:
        return f"name the column that holds the answers (columns: response=…), {allow}"
    if reason == MALFORMED:
        return f"mend the rows, or see each of them with `posttrain data check`, {allow}"
    return f"see the rows with `posttrain data show`, {allow}"
