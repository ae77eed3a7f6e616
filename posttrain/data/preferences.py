"""Rows that compare or judge answers: pairs, rankings, votes and labels. The prompt they share is found once."""

from __future__ import annotations

import json
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

_VERDICTS = {"a": 0, "model_a": 0, "b": 1, "model_b": 1}
_TIES = ("tie", "tie (bothbad)", "both", "neither", "both bad", "both_bad", "both good", "skip")

PAIR_PARTS = {name: PARTS[name] for name in ("messages", "prompt", "input", "system", "history", "tools")} | {
    "chosen": "the better answer: text, a message, or messages",
    "rejected": "the worse answer",
    "answers": "a list of answers, the best first unless `scores` ranks them",
    "scores": "a number per answer, higher is better",
    "a": "one answer", "b": "the other answer", "verdict": "which is better: a, b or tie",
}
LABEL_PARTS = {name: PARTS[name] for name in ("messages", "prompt", "input", "response", "system", "history", "tools")
               } | {"label": "whether the answer is good: true or false", "chosen": PAIR_PARTS["chosen"],
                    "rejected": PAIR_PARTS["rejected"]}
_TALK = {"messages": ("conversations", "conversation", "messages")}
_ASKED = {"prompt": ("prompt", "instruction", "question"), "input": ("input", "context"),
          "system": ("system", "system_prompt"), "history": ("history",), "tools": ("tools",)}
_REST = {k: v for k, v in _ASKED.items() if k != "prompt"}
_CHOSEN = {"chosen": ("chosen", "chosen_messages", "chosen_response"),
           "rejected": ("rejected", "rejected_messages", "rejected_response")}
_VOTE = {"a": ("a", "answer_a", "response_a", "conversation_a"), "b": ("b", "answer_b", "response_b", "conversation_b"),
         "verdict": ("verdict", "winner")}


def _known(name: str, needs: dict[str, tuple[str, ...]], **may: tuple[str, ...]) -> tuple[KnownFormat, ...]:
    """Answers beside a conversation, beside a prompt, or alone: rows that have several are read by the first."""
    return (KnownFormat(name, needs | _TALK, {k: _ASKED[k] for k in ("system", "tools")} | may),
            KnownFormat(name, needs | {"prompt": _ASKED["prompt"]}, _REST | may),
            KnownFormat(name, needs, {k: _ASKED[k] for k in ("system", "history", "tools")} | may))


PAIRS, VOTES = _known("preference pairs", _CHOSEN), _known("votes", _VOTE)
RANKINGS = _known("ranked answers", {"answers": ("answers", "responses", "completions", "output")}, scores=("scores",))
LABELLED = (
    KnownFormat("labelled conversations", {"messages": ("messages", "conversations"), "label": ("label", "kto_tag")},
                {k: _REST[k] for k in ("system", "tools")}),
    KnownFormat("labelled answers", {"prompt": _ASKED["prompt"],
                                     "response": ("completion", "response", "answer", "output"),
                                     "label": ("label", "kto_tag")}, _REST),
)
# By objective, then by kind of row: only a reward model's loss knows a margin.
_READERS = {"reward": (_known("preference pairs", _CHOSEN, margin=("margin",)) + VOTES + RANKINGS,
                       PAIR_PARTS | {"margin": "by how much the better answer is better: a number"}),
            "pair": (PAIRS + VOTES + RANKINGS, PAIR_PARTS),
            "label": (LABELLED + PAIRS, LABEL_PARTS)}


def detect_for(objective: str, columns: Many[str], sample: Many[dict[str, Any]],
               overrides: dict[str, str] | None = None, ranked_pairs: str = "all") -> Format:
    """The format that these columns make for an objective; UserError if they make none that it reads."""
    kind = next((k for k in (objective, *FACTS[objective].rows) if k in _READERS), None)
    if kind is None:
        return detect(columns, sample, overrides)
    known, parts = _READERS[kind]
    check_overrides(columns, overrides or {}, parts)
    if (found := fit_judged(known, columns, sample, overrides or {})) is None:
        _refuse_single(objective, columns, overrides or {})
        raise unknown_columns(columns, overrides or {}, known, parts)
    name, used = found
    unused = tuple(c for c in columns if c not in used.values())
    return (Labelled if kind == "label" else Compared)(name, used, unused, ranked_pairs == "best_worst")


def fit_judged(known: Many[KnownFormat], columns: Many[str], sample: Many[dict[str, Any]], overrides: dict[str, str]
               ) -> tuple[str, dict[str, str]] | None:
    """As `fit_columns`; a column of answers that is no list in any row is no ranking."""
    found = fit_columns(known, columns, overrides)
    column = found[1].get("answers") if found else None
    if column and not any(isinstance(row.get(column), list) or str(row.get(column)).startswith("[") for row in sample):
        return None
    return found


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
        margin = self._margin(raw, row.origin)
        row.facts = [{"rank": 1.0, "margin": margin}, {"rank": 0.0, "margin": 0.0}]
        self._two(row, raw, ("chosen", "rejected"))

    def _two(self, row: Row, raw: dict[str, Any], parts: tuple[str, str]) -> None:
        """Two answers, or two whole conversations, and what the other columns say before them."""
        texts = self._continued(raw, [_parsed(self._need(raw, part, row.origin)) for part in parts])
        if all(map(is_transcript, texts)):
            self._split(row, [read_transcript(t) for t in texts])
            row.messages = join_turns(row.messages)
        elif all(isinstance(t, list) and t and read_messages(t, row.origin)[0]["role"] != "assistant" for t in texts):
            self._split(row, [read_messages(t, row.origin) for t in texts])
        else:
            row.messages = self._context(raw, row.origin)
            row.answers = [self._answer(t, part, row.origin) for t, part in zip(texts, parts, strict=True)]
            return
        joined = None if row.dropped else _joined(self._earlier(raw, texts, row.origin), row.messages, row.answers[0])
        if joined is None:
            row.dropped = CONTEXTS_DIFFER
        else:
            row.messages = _untrained(self._with_system(raw, joined, row.origin))

    def _continued(self, raw: dict[str, Any], texts: list[Any]) -> list[Any]:
        """Texts that go on where a prompt that is a transcript ends, as whole transcripts; all others as they are."""
        prompt = self._maybe(raw, "prompt")
        if not is_transcript(prompt) or not all(isinstance(t, str) for t in texts) or all(map(is_transcript, texts)):
            return texts
        glue = " " if read_transcript(prompt)[-1]["role"] == "assistant" else "\n\nAssistant: "
        return [f"{prompt.rstrip()}{glue}{t}" for t in texts]

    def _earlier(self, raw: dict[str, Any], texts: list[Any], origin: str) -> list[dict[str, Any]]:
        """What the columns say before whole conversations; of a prompt that is empty, or begins them, no more."""
        prompt = self._maybe(raw, "prompt")
        begins = is_transcript(prompt) and all(isinstance(t, str) and t.lstrip().startswith(prompt.strip())
                                               for t in texts)
        if begins or ("prompt" in self.parts and not prompt):
            return self._history(raw, origin)
        return self._before(raw, origin)

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
        self._two(row, raw, ("a", "b"))
        row.facts = [{"rank": 1.0, "margin": 0.0}, {"rank": 0.0, "margin": 0.0}]
        verdict = str(self._need(raw, "verdict", row.origin)).strip().lower()
        if verdict in _TIES:
            row.dropped = row.dropped or TIE
        elif verdict not in _VERDICTS:
            raise RowError("the verdict names no answer", where=row.origin, found=shown(raw[self.parts["verdict"]]),
                           expected="a, b or tie", fix=FIX)
        elif _VERDICTS[verdict] == 1:
            row.answers.reverse()

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
        return _untrained(self._with_system(raw, self._before(raw, origin), origin))

    def _before(self, raw: dict[str, Any], origin: str) -> list[dict[str, Any]]:
        """The conversation, or history and prompt."""
        if "messages" in self.parts:
            return read_messages(self._need(raw, "messages", origin), origin)
        prompt = self._maybe(raw, "prompt")
        if "prompt" in self.parts and not is_transcript(prompt):
            return self._asked(raw, origin)
        turns = join_turns(read_transcript(prompt)) if prompt else []
        open_end = bool(turns) and turns[-1] == {"role": "assistant", "content": ""}
        return self._history(raw, origin) + turns[:len(turns) - open_end]

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
    is dropped none, and one without answers is itself."""
    if row.dropped:
        return []
    if not row.answers:
        return [row]
    return [Row("conversation", row.origin, row.source, [*row.messages, *answer], row.tools) for answer in row.answers]


def _parsed(value: Any) -> Any:
    """Messages that stand as JSON in a text (CSV keeps them so); any other text is an answer as it stands."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("[", "{"):
        return value
    try:
        made = json.loads(value)
    except (ValueError, RecursionError):
        return value
    messages = made if isinstance(made, list) else [made]
    return made if messages and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in messages) else value


def _joined(before: list[dict[str, Any]], messages: list[dict[str, Any]], answer: list[dict[str, Any]]
            ) -> list[dict[str, Any]] | None:
    """`messages` behind those of `before` that they do not hold themselves; None where the two contradict each other.

    A conversation may begin with what stands before it or with the end of that, have it as its last question, or go
    on after its answer.
    """
    known, said = [_said(m) for m in before], [_said(m) for m in (*messages, *answer)]
    if any(said[i:i + len(known)] == known for i in range(len(said))):
        return messages
    head = messages[:1] if messages and messages[0]["role"] == "system" else []
    said = said[len(head):]
    for new in range(1, len(known) + 1):
        overlap = known[new:]
        goes_on = overlap or known[0] != said[0]  # else it answers the same question in another way
        if said[:len(overlap)] == overlap and known[new - 1]["role"] in ("assistant", "system") and goes_on:
            return [*head, *before[:new], *messages[len(head):]]
    return None


def _said(message: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in message.items() if k != "weight"} | {"content": message["content"].strip()}


def _untrained(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**m, "weight": 0} if m["role"] == "assistant" else m for m in messages]


def _is_answer(messages: list[dict[str, Any]]) -> bool:
    """One answer, perhaps with tool calls and their results before its last words."""
    roles = [m["role"] for m in messages]
    plain = [a for a, b in zip(roles, roles[1:], strict=False) if a == b == "assistant"]
    return bool(roles) and roles[0] == roles[-1] == "assistant" and "user" not in roles and not plain


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


