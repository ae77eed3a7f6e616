"""One model on rows: the loss of their answers, its own answers, and the figures that both make."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from ..core.errors import RowError
from ..core.pack import make_pack
from ..core.sequence import CONTENT, Row, Sequence
from ..data.packer import pack_sequences
from .answers import Answer
from .figures import ANSWERS, LOSS, of_reward
from .intervals import Tally, ratio
from .overlap import Overlap
from .words import distinct, repeats, said

NO_LOGPROBS = "an endpoint does not tell the log-probs of given answers"
NO_ANSWERS = "no row holds an answer to compare with"
CHUNK = 256  # rows rendered and judged at a time


@dataclass(slots=True)
class RowLoss:
    """Of one row: Σ of −log p over trained tokens in nats, those tokens, and the UTF-8 bytes of what they say."""

    nats: float
    tokens: int
    bytes: int


@dataclass(slots=True)
class Measured:
    """What one model made of rows, by row number; `losses` None for an endpoint; `dropped` rows with their reason.

    `rewards`: of each reward, the scores of the answers, or why they have none.
    """

    name: str
    facts: str = ""
    losses: dict[int, RowLoss] | None = None
    answers: dict[int, Answer] = field(default_factory=dict)
    dropped: dict[int, str] = field(default_factory=dict)
    rewards: dict[str, dict[int, float] | str] = field(default_factory=dict)


def asked(row: Row) -> list[dict[str, Any]]:
    """What precedes the last answer of a conversation; empty for a text row."""
    return row.messages[:_last_answer(row)]


def reference(row: Row) -> str:
    """The last answer of a conversation."""
    return said(row.messages[_last_answer(row)]["content"] or "")


def _last_answer(row: Row) -> int:
    return max((i for i, m in enumerate(row.messages) if m["role"] == "assistant"), default=0)


def row_losses(forward, renderer, rows: list[Row], pack_tokens: int) -> tuple[dict[int, RowLoss], dict[int, str]]:
    """The loss of every row's answers (all of them; text rows: every token), and why others have none.

    perplexity = exp(Σ nats / Σ tokens), stops included (test_measure.py::test_perplexity_is_the_hand_computation).
    Layout changes memory, never the result.
    """
    losses: dict[int, RowLoss] = {}
    dropped: dict[int, str] = {}
    for start in range(0, len(rows), CHUNK):
        chunk = rows[start:start + CHUNK]
        sequences: list[Sequence] = []
        for number, (row, made) in enumerate(zip(chunk, renderer.render(chunk), strict=True), start):
            if isinstance(made, RowError):
                dropped[number] = made.message
            elif made.dropped:
                dropped[number] = made.dropped
            else:
                losses[number] = RowLoss(0.0, 0, _bytes(row, made.sequences, renderer.spec))
                sequences += [replace(s, origin=str(number)) for s in made.sequences]
        for number, nats, tokens in _nats(forward, sequences, pack_tokens):
            losses[number].nats += nats
            losses[number].tokens += tokens
    return losses, dropped


def _bytes(row: Row, sequences: list[Sequence], spec) -> int:
    """UTF-8 bytes of what is judged: the text, or the answers as the template renders them, without space around."""
    if row.kind == "text":
        return len((row.text or "").encode())
    count = 0
    for s in sequences:
        for judged, run in groupby(range(len(s)), key=lambda i, s=s: s.weights[i] != 0 and s.reasons[i] == CONTENT):
            if judged:
                count += len(spec.decode([int(s.ids[i]) for i in run]).strip().encode())
    return count


def _nats(forward, sequences: list[Sequence], pack_tokens: int):
    """(row, nats, tokens) of each sequence."""
    import torch

    if not sequences:
        return
    model, room = forward.model, max(pack_tokens, max(map(len, sequences)))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for packed in pack_sequences([[s] for s in sequences], room):
            pack = make_pack(packed).to(forward.device)
            judged = pack.weights_T != 0
            nats = (-forward(pack).logprobs_T.double() * judged).cumsum(0).cpu()
            tokens = judged.cumsum(0).cpu()
            for s, a, b in zip(packed, pack.bounds, pack.bounds[1:], strict=False):
                before = (float(nats[a - 1]), int(tokens[a - 1])) if a else (0.0, 0)
                yield int(s.origin), float(nats[b - 1]) - before[0], int(tokens[b - 1]) - before[1]
    model.train(was_training)


def measure(assistant, rows: list[Row], *, pack_tokens: int, ask: bool = True, system: str | None = None,
            note: Callable[[str], None] = lambda text: None, **how: Any) -> Measured:
    """A loaded model on rows: losses, then, for conversations, its answers to what precedes the last one."""
    from .answers import ask as ask_model

    note(f"{assistant.name}: the loss of {len(rows):,} rows …")
    losses, dropped = row_losses(assistant.forward, assistant.renderer, rows, pack_tokens)
    made = Measured(assistant.name, assistant.describe(), losses, dropped=dropped)
    numbers = [i for i, row in enumerate(rows) if row.kind == "conversation" and i in losses] if ask else []
    if numbers:
        note(f"{assistant.name}: answering {len(numbers):,} of them …")
        opening = [{"role": "system", "content": system}] if system else []
        answers = ask_model(assistant.model, assistant.renderer, [opening + asked(rows[i]) for i in numbers],
                            tools=[rows[i].tools for i in numbers], **how)
        made.answers = dict(zip(numbers, answers, strict=True))
    return made


def figures(made: Measured, rows: list[Row], used: list[int], overlap: Overlap | None) -> dict[str, Tally | str]:
    """Every figure over the rows `used`, or the reason why it has none. `overlap` None leaves BLEU and ROUGE out."""
    found: dict[str, Tally | str] = dict.fromkeys(LOSS, NO_LOGPROBS)
    if made.losses is not None:
        nats, tokens, size = (np.array([getattr(made.losses[i], name) for i in used], dtype=np.float64)
                              for name in ("nats", "tokens", "bytes"))
        found["answer_loss"] = ratio(nats, tokens)
        found["perplexity"] = Tally(found["answer_loss"].stats, lambda sums: np.exp(sums[:, 0] / sums[:, 1]))
        found["bits_per_byte"] = ratio(nats / math.log(2), size)
    talks = [i for i in used if rows[i].kind == "conversation"]
    if not talks:
        return found | dict.fromkeys(ANSWERS, NO_ANSWERS)
    texts, wanted = [said(made.answers[i].text) for i in talks], [reference(rows[i]) for i in talks]
    pairs = list(zip(texts, wanted, strict=True))
    found["exact_match"] = ratio(np.array([a == r for a, r in pairs], dtype=np.float64))
    if overlap:
        found["bleu"] = overlap.bleu(texts, wanted)
        found |= overlap.rouge(texts, wanted)
    found["stops"] = ratio(np.array([made.answers[i].stopped for i in talks], dtype=np.float64))
    found["repeats"] = ratio(np.array([repeats(t) for t in texts], dtype=np.float64))
    found["length"] = ratio(np.array([len(t) for t in texts], dtype=np.float64))
    for spec, scores in made.rewards.items():
        found[of_reward(spec)] = scores if isinstance(scores, str) else ratio(np.array([scores[i] for i in talks]))
    for n in (1, 2):
        found[f"distinct_{n}"] = distinct(texts, n) or "no answer is long enough"
    return found
