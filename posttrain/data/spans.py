"""Trained spans found from what a template emits: renderings with and without a turn, and with a sentinel inside."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ..core.errors import RowError, UserError
from .encoder import Encoder
from .shapes import Shape, as_parts, as_text
from .templates import Template

SENTINELS = {"reasoning": "\ue0f1\ue0f2", "content": "\ue0f3\ue0f4", "tools": "\ue0f5\ue0f6"}
TRIMS = (lambda s: s, str.strip, lambda s: s.strip("\n"), str.lstrip, str.rstrip,
         lambda s: s.lstrip("\n"), lambda s: s.rstrip("\n"),
         lambda s: s.rsplit("</think>", 1)[-1], lambda s: s.rsplit("</think>", 1)[-1].strip())


@dataclass(slots=True)
class Turn:
    """One assistant turn in a coded string: text[:start] is what generation is given, text[stop] ends the turn.

    `pieces` are the stretches of `text` that come from the message; the rest of text[start:ending] is scaffold, and
    text[ending:stop+1] the token or tokens that end the turn. Positions count characters of the coded string.
    """

    message: int
    weight: float
    text: str
    start: int
    pieces: list[tuple[int, int]]
    ending: int
    stop: int
    thinking: bool | None = None
    marks: list[tuple[int, int]] | None = None
    unrendered: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        return self.text[:self.start]


@dataclass(frozen=True)
class Ending:
    """How turns of one kind end: a mirror, where it comes from (`template`, `next role`, `eos`), what leads to it."""

    mirror: str
    source: str
    lead: str = ""


@dataclass
class Talk:
    """One row on its way: arranged messages and tools, the encoder that fits it, and the mark that shields it."""

    messages: list[dict[str, Any]]
    tools: list | None
    encoder: Encoder
    mark: str | None
    origin: str

    def __post_init__(self):
        self.shown = self.messages if self.mark is None else self.encoder.shield(self.messages, self.mark)
        self.shown_tools = self.tools if self.mark is None else self.encoder.shield(self.tools, self.mark)


@dataclass
class Finder:
    """Finds the span of an assistant turn for one template; remembers the frames that its messages came in."""

    template: Template
    shape: Shape
    thinking: bool | None = None
    preferred: bool | None = None
    plain: Ending | None = None
    tool: Ending | None = None
    frames: dict[tuple, list] = field(default_factory=dict)

    def text(self, talk: Talk, messages: list, *, prompt: bool = False, thinking: bool | None = None) -> str:
        """The coded rendering of (shielded) messages."""
        return talk.encoder.code(
            self.template.render(messages, talk.shown_tools, prompt=prompt, thinking=thinking), talk.mark)

    def turn(self, talk: Talk, index: int, weight: float) -> Turn:
        """The span of assistant message `index`, found by rendering the conversation up to it and through it."""
        head, through = talk.shown[:index], talk.shown[:index + 1]
        message = talk.messages[index]
        first = None
        for thinking in self.switches(message):
            prompt = self.text(talk, head, prompt=True, thinking=thinking)
            full, marks = self._through(talk, through, thinking)
            if full.startswith(prompt):
                text = full
                break
            first = first or (prompt, full, marks, thinking)
        else:
            prompt, full, marks, thinking = first
            text, closing = self._bridge(prompt, full, message, talk, index)
            if marks is not None:  # what closes the reasoning block is not the template's to mark
                shift = len(text) - len(full)
                marks = [(len(prompt), len(prompt) + closing), *((a + shift, b + shift) for a, b in marks)]
        pieces, end, unrendered = self._pieces(talk, index, text, len(prompt), thinking)
        text, ending, stop = self.end(text, end, message, talk)
        if talk.encoder.any_mirror.sub("", text[stop:]).strip():
            raise UserError("text stands after the stop token of an answer, where nothing would be trained",
                            where=f"{talk.origin}, message {index} (assistant)",
                            found=repr(talk.encoder.plain(text[stop:])[:120]), expected="nothing but white space",
                            fix="choose another chat_template")
        return Turn(index, weight, text, len(prompt), pieces, ending, stop, thinking, marks, unrendered)

    def switches(self, message: dict) -> tuple[bool | None, ...]:
        """Values of the thinking switch to try: the setting, or what the template and then the data suggest."""
        if not self.template.switches:
            return (None,)
        if self.thinking is not None:
            return (self.thinking,)
        thinks = bool(message.get("reasoning_content"))
        return tuple(dict.fromkeys((self.preferred, None, thinks, not thinks)))

    def follows(self, talk: Talk, index: int, thinking: bool | None) -> bool:
        """Does the rendered turn begin with the prompt that generation is given, under this value of the switch?"""
        prompt = self.text(talk, talk.shown[:index], prompt=True, thinking=thinking)
        return self.text(talk, talk.shown[:index + 1], thinking=thinking).startswith(prompt)

    def _through(self, talk: Talk, messages: list, thinking: bool | None):
        if not self.template.has_marks:
            return self.text(talk, messages, thinking=thinking), None
        raw, marks = self.template.render_marked(messages, talk.shown_tools, thinking=thinking)
        code = talk.encoder.code
        at = {p: len(code(raw[:p], talk.mark)) for pair in marks for p in pair}
        return code(raw, talk.mark), [(at[a], at[b]) for a, b in marks]

    def _bridge(self, prompt: str, full: str, message: dict, talk: Talk, index: int) -> tuple[str, int]:
        """Close the reasoning block that the generation prompt opens and the rendered turn leaves out.

        Returns the prompt with what closes the block and the rendered turn after it, and how long the closing is.
        """
        code, show, content = talk.encoder.code, talk.encoder.plain, (as_text(message) or "").strip()
        opened = re.search(f"(?:<think>|{re.escape(code('<think>'))})\\s*$", prompt)
        same = opened.start() if opened else _common(prompt, full)
        rest = full[same:]
        from_row = content.startswith("<think>") and rest.lstrip().startswith(content)
        own_think = show(rest).startswith("<think>") and not from_row
        if not opened or not full.startswith(prompt[:same]) or own_think:
            raise UserError(
                "the turn does not begin where its generation prompt ends",
                where=f"{talk.origin}, message {index} (assistant)",
                found=f"the prompt ends with {show(prompt[same:])!r}, the turn goes on with {show(rest)[:60]!r}",
                expected="the rendered turn to begin with the prompt that generation is given",
                fix="set enable_thinking to auto, true or false as the data is, or choose another chat_template")
        reasoning = (message.get("reasoning_content") or "").strip("\n")
        closing = reasoning + code("\n</think>\n\n")  # the reasoning is the row's: plain text
        return prompt + closing + rest, len(closing)

    # -- inside the span
    def _pieces(self, talk: Talk, index: int, text: str, start: int, thinking: bool | None):
        """Stretches of the span that come from the message -> (stretches, where the last ends, what is missing)."""
        message, span = talk.messages[index], text[start:]
        values = {"reasoning": message.get("reasoning_content") or "", "content": as_text(message) or ""}
        values = {k: v for k, v in values.items() if v.strip()}
        key = tuple(values)
        known = [] if message.get("tool_calls") else self.frames.setdefault(key, [])
        found = next((r for f in known if (r := _match(span, f, values))), None) if values else []
        if found is None:
            try:
                frame = self._frame(talk, index, text[:start], thinking, values)
                found = _match(span, frame, values)
            except UserError:  # the template treats this very content in its own way, and a sentinel otherwise
                found = None
            if found is None:
                found = _only_place(span, values)
            elif not message.get("tool_calls") and len(known) < 16:
                known.append(frame)
            if found is None:
                raise _mismatch(talk, index, span, values)
        missing = tuple(k for k in values if k not in {name for name, *_ in found})
        if any(n == "content" and b - a < len(values[n].strip()) for n, a, b in found):
            missing += ("the thinking inside the content",)
        pieces = [(start + a, start + b) for _, a, b in found]
        if message.get("tool_calls"):
            stretch = self._tool_stretch(talk, index, text, start, thinking)
            if stretch is None:
                missing += ("tool calls",)
            else:
                pieces = sorted([p for p in pieces if not stretch[0] <= p[0] < stretch[1]] + [stretch])
        if "content" in missing or "tool calls" in missing:
            raise _mismatch(talk, index, span, values, missing)
        return pieces, pieces[-1][1] if pieces else start, missing

    def _frame(self, talk: Talk, index: int, prompt: str, thinking: bool | None, values: dict):
        """The span's text around its message: literal, field, literal, …, from a rendering with sentinels."""
        message = dict(talk.shown[index])
        if "content" in values:
            mark = SENTINELS["content"]
            message["content"] = as_parts(mark) if self.shape.parts else mark
        if "reasoning" in values:
            message |= dict.fromkeys(("reasoning_content", "thinking"), SENTINELS["reasoning"])
        full = self.text(talk, [*talk.shown[:index], message], thinking=thinking)
        if not full.startswith(prompt):
            full, _ = self._bridge(prompt, full, message, talk, index)
        return _split(full[len(prompt):])

    def _tool_stretch(self, talk: Talk, index: int, text: str, start: int, thinking: bool | None):
        """From the first tool's name to the last argument: where a rendering with other names and values differs."""
        message = dict(talk.shown[index])
        message["tool_calls"] = [_other_call(c) for c in message["tool_calls"]]
        full = self.text(talk, [*talk.shown[:index], message], thinking=thinking)
        if not full.startswith(text[:start]):
            full, _ = self._bridge(text[:start], full, talk.messages[index], talk, index)
        if SENTINELS["tools"] not in full[start:]:
            return None
        a, b = text[start:], full[start:]
        left = _common(a, b)
        right = min(_common(a[::-1], b[::-1]), len(a) - left, len(b) - left)
        return start + left, start + len(a) - right

    # -- its end
    def end(self, text: str, end: int, message: dict, talk: Talk) -> tuple[str, int, int]:
        """(text with its stop, where the ending begins, where the stop is); appends the stop where none is written."""
        known = self.tool if message.get("tool_calls") else self.plain
        expected = known and _in_plane(known.mirror, talk.encoder)
        tail = text[end:]
        is_mirror = talk.encoder.names.__contains__
        at = tail.find(expected) if expected else -1
        if at < 0 and self.plain:
            at = tail.find(_in_plane(self.plain.mirror, talk.encoder))
        if at < 0:  # the first control tokens with no visible text after them
            seen = next((i + 1 for i in range(len(tail) - 1, -1, -1)
                         if not tail[i].isspace() and not is_mirror(tail[i])), 0)
            if m := talk.encoder.any_mirror.search(tail, seen):
                at = m.start()
                while at + 1 < len(tail) and is_mirror(tail[at + 1]):
                    at += 1
        if at < 0:
            if known is None:
                raise LookupError("no end token")
            body = text[:end] if not tail.strip() else text.rstrip()
            body = text if known.source == "next role" else body
            text, at = body + known.lead + expected, len(body) + len(known.lead) - end
        ending = at
        while ending and is_mirror(text[end + ending - 1]):
            ending -= 1
        return text, end + ending, end + at


def _in_plane(mirror: str, encoder: Encoder) -> str:
    """The same control token's mirror in the plane of this row's encoder."""
    from .encoder import PLANES

    plane = 0 if ord(mirror) < PLANES[1] else 1
    return chr(ord(mirror) - PLANES[plane] + PLANES[encoder.plane])


def _split(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    literals, fields, at = [], [], 0
    while True:
        hits = [(i, name) for name, s in SENTINELS.items() if (i := text.find(s, at)) >= 0]
        if not hits:
            return (*literals, text[at:]), tuple(fields)
        i, name = min(hits)
        literals.append(text[at:i])
        fields.append(name)
        at = i + len(SENTINELS[name])


def _match(span: str, frame, values: dict[str, str]) -> list[tuple[str, int, int]] | None:
    """Lay a frame over a span: literals must stand exactly, fields as given or trimmed, nothing may be left over."""
    literals, fields = frame
    if not span.startswith(literals[0]):
        return None
    at, found = len(literals[0]), []
    for i, name in enumerate(fields):
        after, last = literals[i + 1], i + 1 == len(fields)
        for trim in TRIMS:
            end = at + len(value := trim(values.get(name, "")))
            rest_fits = span[end:] == after if last else span.startswith(after, end)
            if span.startswith(value, at) and rest_fits:
                break
        else:
            return None
        found.append((name, at, end))
        at = end + len(after)
    return found if at == len(span) else None


def _only_place(span: str, values: dict[str, str]) -> list[tuple[str, int, int]] | None:
    """The places of the fields where each stands exactly once in the span."""
    found = []
    for name, value in values.items():
        value = value.strip()
        if span.count(value) != 1:
            return None
        found.append((name, at := span.index(value), at + len(value)))
    return sorted(found, key=lambda f: f[1])


def _other_call(call: dict) -> dict:
    mark = SENTINELS["tools"]

    def swap(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: swap(v) for k, v in value.items()}
        return [swap(v) for v in value] if isinstance(value, list) else mark

    function = call["function"]
    arguments = function["arguments"]
    if isinstance(arguments, str):
        return {**call, "function": {**function, "name": mark, "arguments": mark}}
    return {**call, "function": {**function, "name": mark, "arguments": swap(arguments)}}


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _mismatch(talk: Talk, index: int, span: str, values: dict, missing: tuple[str, ...] = ()) -> UserError:
    wanted = ", then ".join(repr(v.strip()[:80]) for v in values.values()) or "its tool calls"
    if missing:  # a fault of the row under this template, as a refusal of the template is
        return RowError(
            f"the chat template does not render the {' and '.join(missing)} of an answer",
            where=f"{talk.origin}, message {index} (assistant)", found=repr(talk.encoder.plain(span)[:120]),
            expected=wanted, fix="choose a chat_template that renders it, such as chatml, or remove it from the row")
    return UserError(
        "a trained span does not match its message", where=f"{talk.origin}, message {index} (assistant)",
        found=f"the span reads {talk.encoder.plain(span)[:160]!r}",
        expected=f"scaffold, then {wanted}, then the stop token",
        fix="see every token with `posttrain data show --row N`, or choose another chat_template")
