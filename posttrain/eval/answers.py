"""Asking a model: conversations in, answers out, through the renderer's prompts and the one sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..data.render import Renderer
from ..model.sample import generate


@dataclass(slots=True)
class Answer:
    """What a model answered: its text without the stop token, its ids with it, and whether it stopped by itself."""

    text: str
    ids: list[int]
    stopped: bool


def ask(model, renderer: Renderer, conversations: list[list[dict[str, Any]]], *, max_new_tokens: int = 256,
        temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
        on_text: Callable[[str], None] | None = None) -> list[Answer]:
    """Answer each conversation; B lists of messages -> B answers, in order.

    The prompt ids are `renderer.prompt`, the stop ids `renderer.stop_ids`, and nothing else: training saw the same.
    `on_text` is given the text of a single conversation's answer piece by piece.
    """
    prompts = [renderer.prompt(messages) for messages in conversations]
    stops = set(renderer.stop_ids)
    stream = None
    if on_text is not None:
        assert len(prompts) == 1, "only one answer can be streamed"
        pieces = renderer.spec.stream()

        def stream(_: int, token: int) -> None:
            if token not in stops and (text := pieces(token)):
                on_text(text)

    made = generate(model, prompts, max_new_tokens=max_new_tokens, stop_ids=renderer.stop_ids,
                    temperature=temperature, top_p=top_p, seed=seed, on_token=stream)
    return [Answer(renderer.spec.decode(g.answer_ids), g.ids, g.stopped) for g in made]


def continue_text(model, renderer: Renderer, texts: list[str], *, max_new_tokens: int) -> list[str]:
    """The greedy continuation of each text as plain prose, as a base model would go on; B texts -> B texts."""
    prompts = [renderer.spec.encode_text(text) for text in texts]
    made = generate(model, prompts, max_new_tokens=max_new_tokens, stop_ids=renderer.stop_ids)
    return [renderer.spec.decode(g.answer_ids) for g in made]
