"""A loaded model that answers: what chat, compare, the demo and Python's `posttrain.load` talk to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.app.arguments import Command
from posttrain.core.config import Settings, read_config
from posttrain.core.errors import UserError


class Assistant:
    """A model, its renderer and its name."""

    def __init__(self, name: str, model, renderer, facts: str):
        self.name, self.model, self.renderer, self.facts = name, model, renderer, facts

    def describe(self) -> str:
        """One line: device, type, template."""
        return self.facts

    @cached_property
    def forward(self):
        """What losses are measured with; the load probe has judged it."""
        from posttrain.model.probe import prepare_forward

        return prepare_forward(self.model)[0]

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


def how_to_answer(command: Command) -> dict[str, Any]:
    """What a command says of sampling, for `Assistant.answers`; a key that would change nothing is a UserError."""
    how = {name: command.options[name] for name in ("max_new_tokens", "temperature", "top_p")}
    idle = ["top_p"] * (how["top_p"] != 1) + ["seed"] * ("seed" in command.given)
    if how["temperature"] == 0 and idle:
        raise UserError(f"{' and '.join(idle)} changes nothing at temperature 0", where="command line",
                        fix="set --temperature above 0 to sample, or drop " + " and ".join(f"--{k}" for k in idle))
    return how | {"seed": command.settings.seed}


def load(name: str | Path, settings: Settings | None = None) -> Assistant:
    """Load anything that answers: a run, a checkpoint, an adapter, a Hugging Face folder, a hub id, or `builtin`.

    Of `settings` it reads chat_template, enable_thinking, template_date, dtype, device, threads, trust_remote_code.
    """
    settings = settings or Settings()
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.resolve import resolve_model

    ref = resolve_model(name)
    spec = load_tokenizer(ref.tokenizer, chat_template=settings.chat_template, template_date=date_of(ref, settings),
                          trust_remote_code=settings.trust_remote_code)
    thinking = None if settings.enable_thinking == "auto" else settings.enable_thinking == "true"
    renderer = Renderer(spec, enable_thinking=thinking)
    import torch

    from posttrain.model.policy import open_model

    if settings.threads:
        torch.set_num_threads(settings.threads)
    policy = open_model(ref, dtype=settings.dtype, device=settings.device,
                        trust_remote_code=settings.trust_remote_code)
    facts = f"{policy.device}, {str(policy.dtype).removeprefix('torch.')}, template {spec.template_name}"
    return Assistant(str(name), policy.model, renderer, facts)


def check_models(names: list[str]) -> None:
    """What names no model, or an endpoint that nobody answers at, is told before any model is loaded."""
    from posttrain.eval.endpoint import Endpoint, is_endpoint
    from posttrain.model.resolve import resolve_model

    for name in names:
        if is_endpoint(name):
            Endpoint(name).check()
        else:
            resolve_model(name)


def date_of(ref, settings: Settings) -> str | None:
    """The date for templates that print today's: as set, else the one that the run was trained with."""
    if settings.template_date or ref.run is None:
        return settings.template_date
    return read_config(ref.run / "config.yaml").get("template_date")
