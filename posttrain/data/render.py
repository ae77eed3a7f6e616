"""Rows -> weighted sequences, each trained span proved; and the ids that generation is given."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ..core.errors import RowError, UserError
from ..core.sequence import PROMPT, Row, Sequence
from .encoder import Encoded, Encoder
from .gather import gather
from .preferences import conversations
from .proof import prove
from .shapes import arrange, arrange_tools, as_text, left_out
from .spans import Finder, Talk, Turn
from .tokenizer import TokenizerSpec
from .weigh import (
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    EMPTY_TEXT,
    NOTHING_TRAINED,
    TOO_LONG,
    Draft,
    Rendered,
    fit,
    lay,
    split_text,
    weigh,
)

CACHED_TAILS = 4096


@dataclass(slots=True)
class Plan:
    """A row before tokenizing: the texts it becomes, or why it is dropped."""

    row: Row
    drafts: list[Draft] = field(default_factory=list)
    dropped: str | None = None
    notes: tuple[str, ...] = ()


def rendering(settings: Any, spec: TokenizerSpec) -> Callable[..., Renderer]:
    """What makes renderers as a run with these settings has them; the thinking switch and the length are still open."""
    return partial(Renderer, spec, train_on=settings.train_on, overlong=settings.overlong)


class Renderer:
    """Rows in, weighted sequences out, for one tokenizer and one set of settings; of a prompt no token weighs anything.

    train_on: all | last | all_tokens; enable_thinking: the template's switch, strictly; None: the value in `spec`
    where it fits, else what the template and the data suggest, answer by answer; overlong: cut | drop | error.
    `notes` counts what rows hold and the template does not render.
    """

    def __init__(self, spec: TokenizerSpec, *, train_on: str = "all", enable_thinking: bool | None = None,
                 max_length: int = 1024, overlong: str = "cut"):
        self.spec, self.train_on, self.max_length, self.overlong = spec, train_on, max_length, overlong
        self.enable_thinking = spec.enable_thinking if enable_thinking is None else enable_thinking
        self.encoder = spec.encoder
        self.finder = Finder(spec.chat, spec.shape, enable_thinking, spec.enable_thinking, spec.plain_ending,
                             spec.tool_ending)
        self.notes: Counter[str] = Counter()
        self._tails: dict[tuple[int, str], list[int]] = {}
        self._bos, self._eos, self._unknown = spec.id("bos"), spec.id("eos"), spec.id("unk")

    @property
    def stop_ids(self) -> list[int]:
        """Tokens at which generation stops; the first ends a plain answer."""
        return self.spec.stop_ids

    def prompt(self, messages: list[dict[str, Any]], tools: list | None = None, *,
               thinking: bool | None = None) -> list[int]:
        """Exactly the ids that generation is given after these messages: chat, serve and eval use this alone."""
        talk = self._talk(messages, tools, "the prompt")
        thinking = self.enable_thinking if thinking is None else thinking
        text = self.finder.text(talk, talk.shown, prompt=True, thinking=thinking)
        return talk.encoder.ids(talk.encoder.encode([_encodable(text)])[0].ids).tolist()

    def follows(self, row: Row, thinking: bool | None) -> bool:
        """Does every answer of a row begin where its prompt ends, under this value of the switch?

        A row that the template refuses does not speak against a value: it is refused under each.
        """
        try:
            talk = self._talk(row.messages, row.tools, row.origin)
            return all(self.finder.follows(talk, i, thinking)
                       for i, m in enumerate(talk.messages) if m["role"] == "assistant")
        except RowError:
            return True

    def render(self, rows: list[Row]) -> list[Rendered | RowError]:
        """Rows -> Rendered, in order; a row that cannot be rendered is a RowError, a failed proof is raised."""
        talks = [conversations(row) for row in rows]
        made = iter(self._render([talk for of_row in talks for talk in of_row]))
        return [gather(row, [next(made) for _ in of_row]) for row, of_row in zip(rows, talks, strict=True)]

    def _render(self, rows: list[Row]) -> list[Rendered | RowError]:
        plans: list[Plan | Rendered | RowError] = []
        for row in rows:
            try:
                plans.append(self._plan_text(row) if row.kind == "text" else
                             self._asked(row) if row.kind == "prompt" else self._plan(row))
            except RowError as e:
                plans.append(_at(e, row))
        self._encode([d for p in plans if isinstance(p, Plan) for d in p.drafts])
        self._lay([p for p in plans if isinstance(p, Plan) and p.row.kind != "text"])
        decoded = self._decode([p for p in plans if isinstance(p, Plan)])
        made: list[Rendered | RowError] = []
        for plan in plans:
            if isinstance(plan, Plan):
                try:
                    plan = self._finish(plan, decoded)
                    self.notes.update(plan.notes)
                except RowError as e:
                    plan = _at(e, plan.row)
            made.append(plan)
        return made

    # -- before tokenizing
    def _talk(self, messages: list, tools: list | None, origin: str) -> Talk:
        messages, tools = arrange(messages, self.spec.shape), arrange_tools(tools)
        encoder, mark = self.encoder.for_row([messages, tools])
        return Talk(messages, tools, encoder, mark, origin)

    def _asked(self, row: Row) -> Rendered:
        """The ids that generation is given, of which none weighs anything; a prompt too long or empty is dropped."""
        ids = self.prompt(row.messages, row.tools)
        asked = next((m.get("content") for m in reversed(row.messages) if m["role"] == "user"), "")
        dropped = TOO_LONG if len(ids) > self.max_length else (
            EMPTY_PROMPT if isinstance(asked, str) and not asked.strip() else None)
        sequence = Sequence(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32),
                            np.full(len(ids), PROMPT, np.uint8), row.origin, row.source, row=row)
        return Rendered([] if dropped else [sequence], dropped, len(ids))

    def _plan_text(self, row: Row) -> Plan:
        if not (row.text or "").strip():
            return Plan(row, dropped=EMPTY_TEXT)
        encoder, _ = self.encoder.for_row([row.text])
        return Plan(row, [Draft(_encodable(row.text), encoder, [])])

    def _plan(self, row: Row) -> Plan:
        talk = self._talk(row.messages, row.tools, row.origin)
        answers = [i for i, m in enumerate(talk.messages) if m["role"] == "assistant"]
        weights = {i: self._weight(row, i, i == answers[-1]) for i in answers}
        empty = [i for i in answers if weights[i] and _is_empty(talk.messages[i])]
        notes = left_out(talk.messages, talk.tools, self.spec.shape)
        weights |= dict.fromkeys(empty, 0.0)
        if not any(weights.values()):
            text = self.finder.text(talk, talk.shown, thinking=self.enable_thinking)
            return Plan(row, [Draft(_encodable(text), talk.encoder, [])], EMPTY_ANSWER if empty else NOTHING_TRAINED)
        if empty:
            notes += ("an empty answer among others: not trained",)
        last = max(i for i in answers if weights[i])
        if last + 1 < len(talk.messages) and self.train_on != "all_tokens":
            notes += ("messages after the last trained answer: not rendered",)
        turns = [t for i in answers if i <= last and (t := self._turn(talk, i, weights[i])) is not None]
        for turn in turns:
            notes += tuple(f"{what}: not rendered by the template" for what in turn.unrendered)
        if self.train_on == "all_tokens":
            whole = turns[-1].text if last + 1 == len(talk.messages) else self.finder.text(
                talk, talk.shown, thinking=turns[-1].thinking)
            drafts = [Draft(whole, talk.encoder, [t for t in turns if whole.startswith(t.text[:t.stop + 1])])]
        else:
            drafts = _group(turns, talk.encoder)
        for draft in drafts:
            _encodable(draft.text)
        return Plan(row, drafts, notes=tuple(dict.fromkeys(notes)))

    def _turn(self, talk: Talk, index: int, weight: float) -> Turn | None:
        """The span of a turn; an untrained one is only labelled, so it may fail to be found."""
        if weight:
            return self.finder.turn(talk, index, weight)
        try:
            return self.finder.turn(talk, index, weight)
        except UserError:
            return None

    def _weight(self, row: Row, index: int, is_last: bool) -> float:
        given = row.messages[index].get("weight")
        given = 1.0 if given is None else given
        if not isinstance(given, int | float) or not math.isfinite(given) or given < 0:
            raise RowError("the weight of a message is not a number from 0 up", found=f"message {index}: {given!r}",
                           expected="0 (not trained), 1, or a factor", fix="mend the row")
        return 0.0 if self.train_on == "last" and not is_last else float(given)

    # -- tokens
    def _encode(self, drafts: list[Draft]) -> None:
        by_encoder: dict[int, list[Draft]] = {}
        for draft in drafts:
            by_encoder.setdefault(id(draft.encoder), []).append(draft)
        for group in by_encoder.values():
            for draft, encoded in zip(group, group[0].encoder.encode([d.text for d in group]), strict=True):
                draft.encoded = encoded

    def _tail(self, turn: Turn, encoder: Encoder) -> tuple[int, str]:
        """Where the prompt's last control token stands, and the prompt from there on: tokenizers split there."""
        m = encoder.last_mirror.match(turn.prompt)
        at = m.end() - 1 if m else 0
        return at, turn.text[at:turn.start]

    def _tail_ids(self, pairs: list[tuple[Encoder, str]]) -> list[list[int]]:
        missing = {(id(e), t): (e, t) for e, t in pairs if (id(e), t) not in self._tails}
        if len(self._tails) + len(missing) > CACHED_TAILS:
            self._tails.clear()
            missing = {(id(e), t): (e, t) for e, t in pairs}
        by_encoder: dict[int, list] = {}
        for (key, tail), (encoder, _) in missing.items():
            by_encoder.setdefault(key, [encoder, []])[1].append(tail)
        for key, (encoder, tails) in by_encoder.items():
            for tail, encoded in zip(tails, encoder.encode(tails), strict=True):
                self._tails[key, tail] = encoded.ids
        return [self._tails[id(e), t] for e, t in pairs]

    def _lay(self, plans: list[Plan]) -> None:
        """Find each turn's first token; a turn whose prompt would be tokenized otherwise gets a sequence of its own.

        What precedes a span must be the ids of `prompt`. Up to its last control token a prompt is tokenized alike
        alone and inside the whole (tokenizers split there); after it both are compared, token by token.
        """
        turns = [(d, t, *self._tail(t, d.encoder)) for p in plans for d in p.drafts for t in d.turns]
        tails = self._tail_ids([(d.encoder, tail) for d, _, _, tail in turns])
        apart: set[int] = set()
        for (draft, turn, at, _), ids in zip(turns, tails, strict=True):
            encoded = draft.encoded
            first = bisect_right(encoded.starts, at) - 1 if at else 0
            start = first + len(ids)
            fits = encoded.ids[first:start] == ids and (
                start == len(encoded.ids) or encoded.starts[start] >= turn.start)
            if fits:
                draft.laid.append(lay(turn, encoded, start))
            elif turn.weight and self.train_on != "all_tokens":
                apart.add(id(turn))
            else:  # nothing is claimed for its first token
                draft.laid.append(lay(turn, encoded, bisect_left(encoded.starts, turn.start), exact=False))
        if apart:
            for plan in plans:
                if any(id(t) in apart for d in plan.drafts for t in d.turns):
                    self._set_apart(plan, apart)

    def _set_apart(self, plan: Plan, apart: set[int]) -> None:
        """Sequences for turns that merge with their prompt: the prompt's own ids, then the rest tokenized after it."""
        drafts: list[tuple[int, Draft]] = []
        for draft in plan.drafts:
            if any(laid.turn.weight for laid in draft.laid):
                drafts.append((draft.laid[-1].turn.message, draft))
            for turn in draft.turns:
                if id(turn) in apart:
                    head = draft.encoder.encode([turn.prompt])[0]
                    rest = draft.encoder.encode_after(turn.text[turn.start:])
                    encoded = Encoded(head.ids + rest.ids, head.starts + [s + turn.start for s in rest.starts])
                    drafts.append((turn.message, Draft(turn.text, draft.encoder, [turn], encoded,
                                                       [lay(turn, encoded, len(head.ids))])))
        plan.drafts = [d for _, d in sorted(drafts, key=lambda pair: pair[0])]

    def _decode(self, plans: list[Plan]) -> dict[int, list[str]]:
        """Decoded text of every trained span, by row, in one call per encoder."""
        wanted: dict[int, tuple[Encoder, list]] = {}
        for plan in plans:
            for draft in plan.drafts:
                for laid in draft.laid:
                    if laid.proved:
                        wanted.setdefault(id(draft.encoder), (draft.encoder, []))[1].append(
                            (id(plan.row), draft.encoded.ids[laid.start:laid.stop + 1]))
        texts: dict[int, list[str]] = {}
        for encoder, spans in wanted.values():
            for (row, _), text in zip(spans, encoder.decode([ids for _, ids in spans]), strict=True):
                texts.setdefault(row, []).append(text)
        return texts

    def _finish(self, plan: Plan, decoded: dict[int, list[str]]) -> Rendered:
        row = plan.row
        if plan.dropped:
            return Rendered([], plan.dropped, sum(len(d.encoded.ids) for d in plan.drafts), notes=plan.notes)
        if row.kind == "text":
            ids = [*self.spec.text_prefix, *plan.drafts[0].encoder.ids(plan.drafts[0].encoded.ids).tolist(),
                   *(self.spec.text_suffix or ([] if self._eos is None else [self._eos]))]
            pieces = split_text(ids, row, self.max_length)
            if not pieces:
                return Rendered([], EMPTY_TEXT, len(ids))
            return Rendered(pieces, None, sum(map(len, pieces)))
        prove(plan.drafts, row, decoded.get(id(row), []), self._bos, self._unknown)
        whole = self.train_on == "all_tokens"
        sequences = [weigh(d, row, whole) for d in plan.drafts]
        return fit(sequences, plan.drafts, row, max_length=self.max_length, overlong=self.overlong, notes=plan.notes)


def _group(turns: list[Turn], encoder: Encoder) -> list[Draft]:
    """As few texts as hold every trained turn: a turn joins a later turn's text if that begins with all of its own."""
    heads: list[Draft] = []
    for turn in reversed(turns):
        own = turn.text[:turn.stop + 1]
        home = next((d for d in reversed(heads) if d.text.startswith(own)), None)
        if home is not None:
            home.turns.insert(0, turn)
        elif turn.weight:
            heads.append(Draft(turn.text, encoder, [turn]))
    return heads[::-1]


def _is_empty(message: dict[str, Any]) -> bool:
    return not (as_text(message) or "").strip() and not any(message.get(k) for k in ("tool_calls", "reasoning_content"))


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise RowError("the text holds half of a character", found=f"a lone surrogate, \\u{ord(text[e.start]):04x}",
                       expected="valid Unicode", fix="mend the row: half an emoji was cut off") from None
    return text


def _at(error: RowError, row: Row) -> RowError:
    """The same error with the row's origin."""
    if error.where and error.where.startswith(row.origin):
        return error
    return RowError(error.message, where=row.origin, found=error.found, expected=error.expected, fix=error.fix)
