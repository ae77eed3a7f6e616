"""Transcripts in one text, as Anthropic's hh-rlhf writes them: "\\n\\nHuman: …\\n\\nAssistant: …"."""

from __future__ import annotations

import re
from typing import Any

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


def is_transcript(text: Any) -> bool:
    """Whether a text begins as a transcript does."""
    return isinstance(text, str) and re.match(r"\s*Human:", text) is not None


def read_transcript(text: str) -> list[dict[str, Any]]:
    """A transcript as messages, as it stands: one speaker may have several in a row."""
    parts = _TURN.split("\n\n" + text.lstrip())[1:]
    return [{"role": _ROLE[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def join_turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same with one message per turn: what one speaker says in a row is joined by an empty line."""
    joined: list[dict[str, Any]] = []
    for message in messages:
        if joined and joined[-1]["role"] == message["role"]:
            joined[-1] = {**message, "content": f"{joined[-1]['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    return joined
