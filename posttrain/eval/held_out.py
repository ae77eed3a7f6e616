"""Held-out questions with exact answers: what a model knows as prose, and what it answers when asked."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.sequence import Row
from ..data.render import Renderer
from ..model.forward import Forward
from .answers import Answer, ask, continue_text
from .nll import answer_loss

ROOM = 8  # tokens that a right answer may be longer than the longest expected one


@dataclass(frozen=True, slots=True)
class Question:
    """A question, its only right answer, and the same fact as prose: `prefix` that `continuation` goes on."""

    prompt: str
    answer: str
    kind: str = ""
    prefix: str = ""
    continuation: str = ""


@dataclass(slots=True)
class Score:
    """Shares of 0 … 1 (`completes` None where not asked for), the loss in nats per answer token, exp of it."""

    exact_match: float
    completes: float | None
    answer_loss: float
    perplexity: float
    stops: float

    def to_json(self) -> dict[str, float]:
        return {name: round(value, 4) for name, value in asdict(self).items() if value is not None}


def read_questions(path: Path) -> list[Question]:
    """Questions of a JSONL file; a line without prompt and answer is a UserError."""
    questions = []
    for number, line in enumerate(path.read_text("utf-8").rstrip("\n").split("\n"), 1):
        values = json.loads(line)
        if not {"prompt", "answer"} <= set(values):
            raise UserError("a held-out question lacks its prompt or its answer", where=f"{path}:{number}",
                            found=", ".join(values), expected="prompt, answer")
        questions.append(Question(**{k: values[k] for k in Question.__slots__ if k in values}))
    return questions


def score(model, forward: Forward, renderer: Renderer, questions: list[Question],
          completions: bool = False) -> tuple[Score, list[Answer]]:
    """Ask every question greedily and compare; the answer counts as exact when it is the expected text to the letter
    (surrounding space aside)."""
    answers = ask(model, renderer, [[{"role": "user", "content": q.prompt}] for q in questions],
                  max_new_tokens=longest(renderer, [q.answer for q in questions]) + ROOM)
    rows = [Row("conversation", f"held_out:{i}", messages=[{"role": "user", "content": q.prompt},
                                                           {"role": "assistant", "content": q.answer}])
            for i, q in enumerate(questions, 1)]
    loss = answer_loss(forward, [s for made in renderer.render(rows) for s in made.sequences])
    count = len(questions)
    exact = sum(a.text.strip() == q.answer.strip() for a, q in zip(answers, questions, strict=True))
    known = completed(model, renderer, questions) if completions else None
    return Score(exact / count, known, loss.loss, loss.perplexity, sum(a.stopped for a in answers) / count), answers


def completed(model, renderer: Renderer, questions: list[Question]) -> float:
    """Share of the facts that the model completes as prose: its greedy continuation begins with the continuation."""
    asked = [q for q in questions if q.prefix]
    room = longest(renderer, [q.continuation for q in asked]) + 2
    said = continue_text(model, renderer, [q.prefix for q in asked], max_new_tokens=room)
    right = sum(s.strip().startswith(q.continuation.strip()) for s, q in zip(said, asked, strict=True))
    return right / len(asked)


def longest(renderer: Renderer, texts: list[str]) -> int:
    """Tokens of the longest of some texts."""
    return max(len(e.ids) for e in renderer.encoder.encode(texts))
