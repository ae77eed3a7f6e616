"""Asking a model: conversations in, answers out, through the renderer's prompts and the one sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from ..data.render import Renderer
from ..model.sample import generate


@dataclass(slots=True)
class Answer:
    """What a model answered: its text without the stop token and surrounding space, its ids with both, and whether it
    stopped by itself. The text is what a next turn's history holds: space around it belongs to the template."""

    text: str
    ids: list[int]
    stopped: bool


def ask(model, renderer: Renderer, conversations: list[list[dict[str, Any]]], *, max_new_tokens: int = 256,
        temperature: float = 0.0, top_p: float = 1.0, seed: int = 0, tools: list[list | None] | None = None,
        on_text: Callable[[str], None] | None = None) -> list[Answer]:
    """Answer each conversation; B lists of messages (and of tools) -> B answers, in order.

    The prompt ids are `renderer.prompt`, the stop ids `renderer.stop_ids`, and nothing else: training saw the same.
    `on_text` is given the text of a single conversation's answer piece by piece.
    """
    prompts = [renderer.prompt(messages, offered) for messages, offered in
               zip(conversations, tools or [None] * len(conversations), strict=True)]
    assert on_text is None or len(prompts) == 1, "only one answer can be streamed"
    stream = Stream(renderer, on_text) if on_text else None
    made = generate(model, prompts, max_new_tokens=max_new_tokens, stop_ids=renderer.stop_ids,
                    temperature=temperature, top_p=top_p, seed=seed, on_token=stream)
    answers = [Answer(renderer.spec.decode(g.answer_ids).strip(), g.ids, g.stopped) for g in made]
    if stream:
        stream.finish(answers[0].text)
    return answers


class Stream:
    """Ids as they are sampled -> text pieces, whole characters only; joined they are the answer's text
    (test_answers.py::test_the_stream_is_the_text)."""

    def __init__(self, renderer: Renderer, on_text: Callable[[str], None]):
        self.backend = Tokenizer.from_str(renderer.spec.backend)
        self.decoder, self.stops = DecodeStream(skip_special_tokens=False), set(renderer.stop_ids)
        self.on_text, self.said, self.held = on_text, "", ""

    def __call__(self, _: int, token: int) -> None:
        if token not in self.stops and (text := self.decoder.step(self.backend, token)):
            self._say(self.held + text)

    def _say(self, text: str) -> None:
        """Hand on what does not end in space; space at the very beginning and end is nobody's."""
        text = text if self.said else text.lstrip()
        whole = text.rstrip()
        self.held = text[len(whole):]
        if whole:
            self.said += whole
            self.on_text(whole)

    def finish(self, text: str) -> None:
        """Hand on what was held back: half a character at the very end."""
        if text.startswith(self.said):
            self._say(text[len(self.said):])


def continue_text(model, renderer: Renderer, texts: list[str], *, max_new_tokens: int) -> list[str]:
    """The greedy continuation of each text as plain prose, as a base model would go on; B texts -> B texts."""
    spec = renderer.spec
    backend = Tokenizer.from_str(spec.backend)
    prompts = [spec.text_prefix + backend.encode(text, add_special_tokens=False).ids for text in texts]
    made = generate(model, prompts, max_new_tokens=max_new_tokens, stop_ids=renderer.stop_ids)
    return [renderer.spec.decode(g.answer_ids) for g in made]
