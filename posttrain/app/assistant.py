"""A loaded model that answers: what chat, compare, the demo and Python's `posttrain.load` talk to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.core.config import Settings


class Assistant:
    """A model, its renderer and its name."""

    def __init__(self, name: str, model, renderer, facts: str):
        self.name, self.model, self.renderer, self.facts = name, model, renderer, facts

    def describe(self) -> str:
        """One line: device, type, template."""
        return self.facts

    def chat(self, messages: str | list[dict[str, Any]], **how: Any) -> str:
        """The answer to a conversation (or to one question); `how` as in `answers`."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return self.answers([messages], **how)[0].text

    def answer(self, messages: list[dict[str, Any]], on_text: Callable[[str], None] | None = None, **how: Any):
        """One Answer, streamed to `on_text` as it grows."""
        from posttrain.eval.answers import ask

        return ask(self.model, self.renderer, [messages], on_text=on_text, **how)[0]

    def answers(self, conversations: list[list[dict[str, Any]]], *, system: str | None = None, **how: Any) -> list:
        """An Answer to each conversation, batched; `how`: max_new_tokens, temperature, top_p, seed."""
        from posttrain.eval.answers import ask

        opening = [{"role": "system", "content": system}] if system else []
        return ask(self.model, self.renderer, [opening + c for c in conversations], **how)


def load(name: str | Path, settings: Settings | None = None) -> Assistant:
    """Load anything that answers: a run, a checkpoint, an adapter, a Hugging Face folder, a hub id, or `builtin`."""
    settings = settings or Settings()
    raise NotImplementedError
