"""From what `data` names to the sequences of update n: the work of the data worker, in whichever process."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from typing import Any

from ..core.errors import RowError, UserError
from ..core.objectives import updates_per_batch
from ..core.sequence import Row
from .batch import Batch, HeldRows, Opened, Outcome, settle
from .judge import HEAD_ROWS, OVERLONG, Head, smallest_keeping
from .order import HeldOut, Order
from .preferences import conversations
from .read import check_specs, open_sources
from .thinking import choose_thinking

EXAMPLES = 6  # first rows that a run keeps token by token for its report
CHUNK = 512  # rows rendered at once: enough to keep every core of the tokenizer busy, little enough to hold


def batches(settings: Any) -> int | None:
    """Batches of rows that max_steps updates take; a last one is made whole."""
    return None if settings.max_steps is None else -(-settings.max_steps // updates_per_batch(settings))


class Updates:
    """Opened sources, their order, and a renderer: gives the head, update n and the rows of validation."""

    def __init__(self, settings: Any):
        self.settings = settings
        check_specs(settings.data, settings.eval_data)
        # opened together, so that `columns` may name a column that only one of them has
        opened = open_sources([*settings.data, *settings.eval_data], columns=settings.columns,
                              objective=settings.objective, ranked_pairs=settings.ranked_pairs)
        self.sources, self.eval_sources = opened[:len(settings.data)], opened[len(settings.data):]
        self.held = [HeldOut(len(s), settings.eval_split if s.share is None else 0.0, settings.seed, i)
                     for i, s in enumerate(self.sources)]
        if settings.eval_split and not any(len(h.rows) for h in self.held):
            raise UserError("eval_split holds out no row", where="eval_split", found=f"{settings.eval_split:g}",
                            expected="a data source of at least two rows", fix="name eval_data instead")
        self.order = Order([h.kept for h in self.held], [s.share for s in self.sources], settings.batch_size,
                           seed=settings.seed, shuffle=settings.shuffle, epochs=settings.num_train_epochs,
                           max_steps=batches(settings), names=[s.spec for s in self.sources])
        if settings.bad_rows == "error":
            for source in self.sources:
                source.format  # noqa: B018 - its error, where no row of a sample can be read
        self.opened = Opened(
            [s.describe() | {"held_out": len(h.rows)} for s, h in zip(self.sources, self.held, strict=True)],
            self.order.total, self.order.updates_per_epoch, self.order.main_rows)
        self._make: Callable[..., Any] | None = None
        self._renderer: Any = None
        self._ready: deque[Outcome] = deque()  # outcomes of the head that no update consumed yet
        self._next = 0  # the update that they begin with

    def head(self, make_renderer: Callable[..., Any]) -> Head:
        """Render the first rows in training order, 4,000 or one epoch; updates from 0 on use them again.

        `make_renderer(enable_thinking=…, max_length=…)` gives a renderer; its thinking switch is decided here.
        """
        settings, order = self.settings, self.order
        places: list[tuple[int, int, int]] = []
        ends: list[int] = []  # of the updates, in places
        for n in range(min(order.updates_per_epoch, order.total)):
            places += order.places(n)
            ends.append(len(places))
            if len(places) >= HEAD_ROWS:
                break
        rows = [self._read(source, self.held[source].row(i)) for source, i, _ in places[:HEAD_ROWS]]
        auto = settings.enable_thinking == "auto"
        make = partial(make_renderer, enable_thinking=None if auto else settings.enable_thinking == "true")
        self._make, self._renderer = make, make(max_length=settings.max_length)
        read = [talk for r in rows if isinstance(r, Row) for talk in conversations(r)]
        thinking, why = choose_thinking(settings.enable_thinking, self._renderer, read)
        if auto:  # where the switch is not set, a renderer takes the tokenizer's
            self._renderer.spec.enable_thinking = thinking
            self._renderer = make(max_length=settings.max_length)
        outcomes = self._render(rows)
        self._ready, self._next = deque(outcomes), 0
        atoms, ledger = settle(outcomes)
        lengths = sorted(o.rendered for o in outcomes if not o.error)
        notes = dict(Counter(note for o in outcomes for note in o.notes))
        sizes = [sum(len(s) for s in o.sequences) for o in outcomes]
        updates = [sum(sizes[a:b]) for a, b in zip([0, *ends], ends, strict=False) if b <= len(outcomes)]
        head = Head(ledger, lengths, thinking, why, atoms[0][0] if atoms else None, notes=notes, updates=updates,
                    examples=[atom[0] for atom in atoms[:EXAMPLES]])
        for outcome in outcomes:
            if outcome.dropped:
                head.first_lost.setdefault(outcome.dropped, outcome.origin)
        if ledger.lost > settings.max_lost:
            overlong = [(row, o.rendered) for row, o in zip(rows, outcomes, strict=True) if o.dropped in OVERLONG]
            head.keep_99 = smallest_keeping(overlong, len(rows), settings.max_length, self._overlong)
        return head

    def batch(self, n: int) -> Batch:
        """The rows of update n (0-based), read and rendered; those of the head only once."""
        places = self.order.places(n)
        if n != self._next:
            self._ready.clear()
        self._next = n + 1
        outcomes = [self._ready.popleft() for _ in range(min(len(places), len(self._ready)))]
        rest = places[len(outcomes):]
        for at in range(0, len(rest), CHUNK):
            outcomes += self._render([self._read(s, self.held[s].row(i)) for s, i, _ in rest[at:at + CHUNK]])
        atoms, ledger = settle(outcomes)
        rejected = [o.record() for o, (_, _, lap) in zip(outcomes, places, strict=True) if o.dropped and lap == 0]
        return Batch(n + 1, self.order.epoch(n + 1), self.order.ends_epoch(n), atoms, ledger, rejected)

    def held_rows(self) -> HeldRows:
        """Every row of eval_data, or those that eval_split held out, rendered once and in file order."""
        places = [(s.index, i) for s in self.eval_sources for i in range(len(s))]
        places += [(s.index, i) for s, h in zip(self.sources, self.held, strict=True) for i in h.rows.tolist()]
        outcomes: list[Outcome] = []
        for at in range(0, len(places), CHUNK):
            outcomes += self._render([self._read(s, i) for s, i in places[at:at + CHUNK]])
        return HeldRows(*settle(outcomes), [o.record() for o in outcomes if o.dropped])

    @property
    def renderer(self) -> Any:
        """The renderer of the run, once `head` has decided its thinking switch."""
        return self._renderer

    def files(self) -> list[dict[str, Any]]:
        """Path, rows and SHA-256 of every data file, for the run's records."""
        return [f for s in (*self.sources, *self.eval_sources) for f in s.files()]

    def _read(self, source: int, i: int) -> Row | RowError:
        """Row i of a source, or why it is none; under `bad_rows: error` that ends the run."""
        return (self.sources + self.eval_sources)[source].row_or_error(i, self.settings.bad_rows)

    def _render(self, rows: list[Row | RowError]) -> list[Outcome]:
        """Outcome of each row, in order."""
        good = [row for row in rows if isinstance(row, Row)]
        made: list[Any] = []
        for at in range(0, len(good), CHUNK):
            made += self._renderer.render(good[at:at + CHUNK])
        assert len(made) == len(good), "a renderer answers every row"
        rendered = iter(made)
        outcomes = [Outcome.of(row.origin, next(rendered)) if isinstance(row, Row) else Outcome.of(row.where, row)
                    for row in rows]
        for outcome in outcomes:
            if outcome.error and self.settings.bad_rows == "error":
                outcome.error.where = outcome.origin
                raise outcome.error
        return outcomes

    def _overlong(self, rows: list[Row], max_length: int) -> list[bool]:
        """Which rows would be dropped as overlong at another max_length."""
        renderer = self._make(max_length=max_length)
        return [not isinstance(o, RowError) and o.dropped in OVERLONG for o in renderer.render(rows)]
