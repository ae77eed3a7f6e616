"""Whether two models are one: the same greedy text, and logits that differ by rounding only."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.render import Renderer
from .answers import ask

ROOM = 32  # tokens of an answer


@dataclass(slots=True)
class Heard:
    """What a model said to some prompts: ids of prompts and answers, and the logits [N, V] behind each answer."""

    prompts: list[list[int]]
    answers: list[list[int]]
    logits: list[torch.Tensor]


@dataclass(slots=True)
class Likeness:
    """`largest` |Δlogit| over every position and entry, `scale` the largest |logit|; how many answers are the same,
    and how many part only where the two best tokens are closer than that difference can tell."""

    prompts: int
    positions: int
    largest: float
    scale: float
    same: int
    ties: int


@torch.no_grad()
def hear(model, renderer: Renderer, questions: list[str], answers: list[list[int]] | None = None) -> Heard:
    """Answer each question greedily; logits are those of `answers` where given, else of its own."""
    asked = [[{"role": "user", "content": q}] for q in questions]
    said = [a.ids for a in ask(model, renderer, asked, max_new_tokens=ROOM)]
    prompts, logits = [renderer.prompt(messages) for messages in asked], []
    for prompt, answer in zip(prompts, answers or said, strict=True):
        ids = torch.tensor([prompt + answer], device=model.device)
        logits.append(model(input_ids=ids).logits[0, len(prompt) - 1:-1].float().cpu())
    return Heard(prompts, said, logits)


def compare(one: Heard, other: Heard) -> Likeness:
    """How alike two models are; the logits of `other` are behind the answers of `one`."""
    if one.prompts != other.prompts:
        raise AssertionError("the two models were not asked the same ids")
    largest = max((a - b).abs().max().item() for a, b in zip(one.logits, other.logits, strict=True))
    scale = max(a.abs().max().item() for a in one.logits)
    same = ties = 0
    for a, b, logits in zip(one.answers, other.answers, one.logits, strict=True):
        at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if at is None:
            same += a == b
        else:
            ties += (logits[at, a[at]] - logits[at, b[at]]).item() <= 2 * largest
    return Likeness(len(one.prompts), sum(len(a) for a in one.answers), largest, scale, same, ties)
