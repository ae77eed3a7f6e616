"""How turns end under a template: which token, where it comes from, and the set that generation stops at."""

from __future__ import annotations

from ..core.errors import RowError, UserError
from .encoder import Encoder
from .shapes import Shape, arrange
from .spans import Ending, Finder, Talk
from .templates import Template

_QUESTION, _ANSWER = {"role": "user", "content": "zquestionqz"}, {"role": "assistant", "content": "zqanswerqz"}
_CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"id": "callzq001", "function": {"name": "zqnameqz", "arguments": {"x": "zqvalueqz"}}}]}
_RESULT = {"role": "tool", "name": "zqnameqz", "tool_call_id": "callzq001", "content": "zqresultqz"}


def find_endings(template: Template, shape: Shape, encoder: Encoder, eos: str | None) -> tuple[Ending, Ending | None]:
    """How a plain answer and (where the template renders them) a tool call end."""
    finder = Finder(template, shape)
    finder.plain = plain = _ending(finder, encoder, [_QUESTION, _ANSWER], _QUESTION, eos)
    if not shape.tool_calls:
        return plain, None
    try:
        return plain, _ending(finder, encoder, [_QUESTION, _CALL], _RESULT, eos)
    except UserError:  # rows with tool calls will say so, each with its own origin
        return plain, None


def _ending(finder: Finder, encoder: Encoder, messages: list, follow_up: dict, eos: str | None) -> Ending:
    messages = arrange(messages, finder.shape)
    talk = Talk(messages, None, encoder, None, "a probe of the chat template")
    try:
        turn = finder.turn(talk, len(messages) - 1, 1.0)
        return Ending(turn.text[turn.stop], "template")
    except RowError as e:
        raise UserError("the chat template refuses a question and its answer", where="chat_template", found=e.found,
                        fix="choose another chat_template: chatml, llama2, alpaca, plain or a file") from None
    except LookupError:  # nothing ends the turn: what would follow it does, or eos
        full = finder.text(talk, messages)
    try:
        longer = finder.text(talk, [*messages, *arrange([follow_up], finder.shape)])
    except RowError:
        longer = ""
    rest = longer[len(full):] if longer.startswith(full) else ""
    mark = encoder.any_mirror.search(rest)
    if mark and not rest[:mark.start()].strip():
        return Ending(mark.group(), "next role", rest[:mark.start()])
    if eos is None:
        raise UserError("nothing ends a turn: the chat template writes no token there and the tokenizer has no eos",
                        where="chat_template", fix="choose chat_template=chatml, or give the tokenizer an eos_token")
    return Ending(encoder.mirrors[eos], "eos")


def explain(encoder: Encoder, plain: Ending, tool: Ending | None, eos: str | None) -> list[tuple[str, str]]:
    """The stop tokens and why each is one: [(token, reason)]."""
    said = {"template": "the template ends {} with it", "next role": "the template writes no end after {}; the next "
            "role's token, which follows, is the stop", "eos": "the template writes no end after {}; eos is appended"}
    found = [(encoder.names[plain.mirror], said[plain.source].format("an answer"))]
    if tool and tool.mirror != plain.mirror:
        found.append((encoder.names[tool.mirror], said[tool.source].format("a tool call")))
    if eos is not None and eos not in dict(found):
        found.append((eos, "the tokenizer's eos, which the base model may still write"))
    return found
