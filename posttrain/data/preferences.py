"""Rows that compare or judge answers: pairs, rankings, votes and labels. The prompt they share is found once."""

from __future__ import annotations

import math
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import Any

from ..core.errors import RowError, UserError
from ..core.objectives import FACTS
from ..core.sequence import Row
from .formats import KNOWN, PARTS, Format, KnownFormat, check_overrides, detect, fit_columns, unknown_columns
from .messages import FIX, check_order, json_value, plain_text, read_messages, read_tools, shown
from .transcripts import is_transcript, join_turns, read_transcript

# Why a row is dropped before it is rendered; the ledger counts under these names.
CONTEXTS_DIFFER = "contexts differ"
TIE = "no answer is better"
EQUAL = "equal answers"

PAIR_PARTS = {name: PARTS[name] for name in ("messages", "prompt", "input", "system", "history", "tools")} | {
    "chosen": "the better answer: text, a message, or messages",
    "rejected": "the worse answer",
    "margin": "by how much the better answer is better: a number",
    "answers": "a list of answers, the best first unless `scores` ranks them",
    "scores": "a number per answer, higher is better",
    "a": "one answer", "b": "the other answer", "verdict": "which is better: a, b or tie",
}
LABEL_PARTS = {name: PARTS[name] for name in ("messages", "prompt", "input", "response", "system", "history", "tools")
               } | {"label": "whether the answer is good: true or false", "chosen": PAIR_PARTS["chosen"],
                    "rejected": PAIR_PARTS["rejected"]}
_SHARED = {"messages": ("conversations", "conversation", "messages"), "prompt": ("prompt", "instruction", "question"),
           "input": ("input", "context"), "system": ("system", "system_prompt"), "history": ("history",),
           "tools": ("tools",)}
_CHOSEN = {"chosen": ("chosen", "chosen_messages", "chosen_response"),
           "rejected": ("rejected", "rejected_messages", "rejected_response")}
PAIRS = (
    KnownFormat("preference pairs", _CHOSEN, {**_SHARED, "margin": ("margin",)}),
    KnownFormat("votes", {"a": ("a", "answer_a", "response_a"), "b": ("b", "answer_b", "response_b"),
                          "verdict": ("verdict", "winner")}, _SHARED),
    KnownFormat("ranked answers", {"answers": ("answers", "responses", "completions", "output")},
                {**_SHARED, "scores": ("scores",)}),
)
_PROMPTED = {"prompt": ("prompt", "instruction", "question"),
             "response": ("completion", "response", "answer", "output")}
_REST = {k: v for k, v in _SHARED.items() if k not in ("messages", "prompt")}
LABELS = (
    KnownFormat("labelled conversations", {"messages": ("messages", "conversations"), "label": ("label", "kto_tag")},
                {k: _REST[k] for k in ("system", "tools")}),
    KnownFormat("labelled answers", {**_PROMPTED, "label": ("label", "kto_tag")}, _REST),
    KnownFormat("preference pairs", _CHOSEN, _SHARED),
)
_READERS = {"pair": (PAIRS, PAIR_PARTS), "label": (LABELS, LABEL_PARTS)}


def detect_for(objective: str, columns: Many[str], sample: Many[dict[str, Any]],
               overrides: dict[str, str] | None = None, ranked_pairs: str = "all") -> Format:
    """The format that these columns make for an objective; UserError if they make none that it reads."""
    kind = next((k for k in _READERS if k in FACTS[objective].rows), None)
    if kind is None:
        return detect(columns, sample, overrides)
    known, parts = _READERS[kind]
    check_overrides(columns, overrides or {}, parts)
    found = fit_columns(known, columns, overrides or {})
    lists = found is None or "answers" not in found[1] or any(
        isinstance(row.get(found[1]["answers"]), list) or str(row.get(found[1]["answers"])).startswith("[")
        for row in sample)
    if found is None or not lists:
        _refuse_single(objective, columns, overrides or {})
        raise unknown_columns(columns, overrides or {}, known, parts)
    name, used = found
    unused = tuple(c for c in columns if c not in used.values())
    return (Compared if kind == "pair" else Labelled)(name, used, unused, ranked_pairs == "best_worst")


def _refuse_single(objective: str, columns: Many[str], overrides: dict[str, str]) -> None:
    """UserError where the columns are those of rows with one answer each."""
    if found := fit_columns(KNOWN, columns, overrides):
        raise UserError(f"these rows hold one answer each, and `posttrain {objective}` learns from answers that are "
                        "compared or judged", found=", ".join(columns)[:200] + f" (format {found[0]})",
                        expected="for example prompt, chosen, rejected" + (
                            "; or prompt, completion, label" if "label" in FACTS[objective].rows else ""),
                        fix="learn from them with posttrain sft, or name the columns: --columns "
                            "chosen=BETTER,rejected=WORSE")


@dataclass(frozen=True)
class Compared(Format):
    """Rows whose answers to one prompt are compared: Row(kind "pair") with its answers, the best first.

    Each answer has the facts `rank` (higher is better) and `margin` (by how much, where the row says it).
    """

    best_worst: bool = False

    @property
    def kind(self) -> str:
        return "pair"

    def to_row(self, raw: dict[str, Any], origin: str, source: int = 0) -> Row:
        """The validated Row; one that compares nothing says why in `dropped`."""
        row = Row("pair", origin, source, tools=read_tools(self._maybe(raw, "tools"), origin))
        if "chosen" in self.parts:
            self._chosen(row, raw)
        elif "verdict" in self.parts:
            self._vote(row, raw)
        else:
            self._ranked(row, raw)
        for answer in row.answers if not row.dropped else []:
            if not row.messages:
                raise RowError("the row has no prompt", where=origin, found=", ".join(raw),
                               expected="a prompt, a conversation, or transcripts that begin with it", fix=FIX)
            check_order([*row.messages, *answer], origin)
        return row

    def _chosen(self, row: Row, raw: dict[str, Any]) -> None:
        texts = [self._need(raw, part, row.origin) for part in ("chosen", "rejected")]
        margin = self._margin(raw, row.origin)
        row.facts = [{"rank": 1.0, "margin": margin}, {"rank": 0.0, "margin": 0.0}]
        prompt = self._maybe(raw, "prompt")
        if is_transcript(prompt) and all(isinstance(t, str) for t in texts):
            texts = [f"{prompt.rstrip()} {t}" for t in texts]
        if all(is_transcript(t) for t in texts):
            self._split(row, [read_transcript(t) for t in texts])
            row.messages = join_turns(row.messages)
            return
        texts = [json_value(t, "an answer", row.origin) if isinstance(t, str) and t[:2] in ("[{", '{"') else t
                 for t in texts]
        whole = [isinstance(t, list) and bool(t) and read_messages(t, row.origin)[0]["role"] != "assistant"
                 for t in texts]
        if all(whole):
            self._split(row, [read_messages(t, row.origin) for t in texts])
            row.messages = self._with_system(raw, row.messages, row.origin)
        else:
            row.messages = self._context(raw, row.origin)
            row.answers = [self._answer(t, part, row.origin)
                           for t, part in zip(texts, ("chosen", "rejected"), strict=True)]

    def _split(self, row: Row, talks: list[list[dict[str, Any]]]) -> None:
        """Two whole conversations into what they share and two answers, or `contexts differ`."""
        one, two = ([{k: v for k, v in m.items() if k != "weight"} for m in talk] for talk in talks)
        shared = 0
        while shared < min(len(one), len(two)) - 1 and one[shared] == two[shared]:
            shared += 1
        row.messages, row.answers = _untrained(one[:shared]), [one[shared:], two[shared:]]
        if not all(_is_answer(rest) for rest in row.answers):
            row.dropped = CONTEXTS_DIFFER

    def _vote(self, row: Row, raw: dict[str, Any]) -> None:
        row.messages = self._context(raw, row.origin)
        answers = [self._answer(self._need(raw, part, row.origin), part, row.origin) for part in ("a", "b")]
        verdict = str(self._need(raw, "verdict", row.origin)).strip().lower()
        if verdict in ("tie", "both", "neither", "both bad", "both good", "skip"):
            row.dropped = TIE
        elif verdict not in ("a", "b"):
            raise RowError("the verdict names no answer", where=row.origin, found=shown(raw[self.parts["verdict"]]),
                           expected="a, b or tie", fix=FIX)
        row.answers = answers if verdict == "a" else answers[::-1]
        row.facts = [{"rank": 1.0, "margin": 0.0}, {"rank": 0.0, "margin": 0.0}]

    def _ranked(self, row: Row, raw: dict[str, Any]) -> None:
        row.messages = self._context(raw, row.origin)
        answers = json_value(self._need(raw, "answers", row.origin), "the list of answers", row.origin)
        if not isinstance(answers, list) or len(answers) < 2:
            raise RowError("the answers are no list of two or more", where=row.origin, found=shown(answers),
                           expected='["the best answer", …, "the worst answer"]', fix=FIX)
        scores = json_value(self._maybe(raw, "scores"), "the scores", row.origin)
        if scores is None:
            scores = list(range(len(answers), 0, -1))
        if not isinstance(scores, list) or len(scores) != len(answers) or not all(map(_is_number, scores)):
            raise RowError("the scores do not fit the answers", where=row.origin, found=shown(scores),
                           expected=f"{len(answers)} numbers", fix=FIX)
        order = sorted(range(len(answers)), key=lambda i: -scores[i])
        if scores[order[0]] == scores[order[-1]]:
            row.dropped = TIE
        picked = [order[0], order[-1]] if self.best_worst else order
        row.answers = [self._answer(answers[i], "answers", row.origin) for i in picked]
        row.facts = [{"rank": float(scores[i]), "margin": 0.0} for i in picked]

    def _context(self, raw: dict[str, Any], origin: str) -> list[dict[str, Any]]:
        """The messages before the answers, none of them trained."""
        if "messages" in self.parts:
            messages = read_messages(self._need(raw, "messages", origin), origin)
        elif "prompt" in self.parts:
            messages = self._asked(raw, origin)
        else:
            messages = []
        return _untrained(self._with_system(raw, messages, origin))

    def _answer(self, value: Any, part: str, origin: str) -> list[dict[str, Any]]:
        if isinstance(value, dict):
            value = [value]
        if isinstance(value, list) and all(isinstance(m, dict) for m in value):
            return [{k: v for k, v in m.items() if k != "weight"} for m in read_messages(value, origin)]
        return [{"role": "assistant", "content": plain_text(value, f"column `{self.parts[part]}`", origin)}]

    def _margin(self, raw: dict[str, Any], origin: str) -> float:
        value = self._maybe(raw, "margin")
        if value is not None and not _is_number(value):
            raise RowError("the margin is no number", where=origin, found=shown(value), expected="a number, or null",
                           fix=FIX)
        return float(value or 0.0)


@dataclass(frozen=True)
class Labelled(Compared):
    """Rows whose single answer is called good or bad: Row(kind "label") with the fact `label`, 1 or 0.

    Of a pair both answers are rows of their own kind: the better one is good, the other bad.
    """

    @property
    def kind(self) -> str:
        return "label"

    def to_row(self, raw: dict[str, Any], origin: str, source: int = 0) -> Row:
        """The validated Row."""
        if "chosen" in self.parts:
            row = super().to_row(raw, origin, source)
            row.kind, row.facts = "label", [{"label": 1.0}, {"label": 0.0}]
            return row
        tools = read_tools(self._maybe(raw, "tools"), origin)
        label = self._need(raw, "label", origin)
        if label not in (True, False):
            raise RowError("the label is neither true nor false", where=origin, found=shown(label),
                           expected="true (good) or false (bad)", fix=FIX)
        if "messages" in self.parts:
            messages = self._with_system(raw, read_messages(self._need(raw, "messages", origin), origin), origin)
            last = max((i for i, m in enumerate(messages) if m["role"] != "assistant"), default=-1) + 1
            context, answer = messages[:last], messages[last:]
            if not answer:
                raise RowError("the conversation has no assistant turn at its end", where=origin,
                               found=", ".join(m["role"] for m in messages), expected="the answer that is judged",
                               fix=FIX)
        else:
            context = self._with_system(raw, self._asked(raw, origin), origin)
            answer = self._answer(self._need(raw, "response", origin), "response", origin)
        check_order([*context, *answer], origin)
        answer = [{k: v for k, v in m.items() if k != "weight"} for m in answer]
        return Row("label", origin, source, messages=_untrained(context), tools=tools, answers=[answer],
                   facts=[{"label": float(label)}])


def conversations(row: Row) -> list[Row]:
    """The conversations that a row's answers make with its prompt, of which only the answer is trained; of a row that
    is dropped none, and a conversation or text is itself."""
    if row.kind not in _READERS:
        return [row]
    if row.dropped:
        return []
    return [Row("conversation", row.origin, row.source, [*row.messages, *answer], row.tools) for answer in row.answers]



def _untrained(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages]


def _is_answer(messages: list[dict[str, Any]]) -> bool:
    """One answer, perhaps with tool calls and their results before its last words."""
    roles = [m["role"] for m in messages]
    plain = [a for a, b in zip(roles, roles[1:], strict=False) if a == b == "assistant"]
    return bool(roles) and roles[0] == roles[-1] == "assistant" and "user" not in roles and not plain


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


