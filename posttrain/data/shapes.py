"""The form in which a template wants its messages, found by probing it, and messages brought into that form."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from ..core.errors import RowError
from .templates import Template

REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
THINK_OPEN = re.compile(r"<think>\s*$")
_INLINE_THINK = re.compile(r"\s*<think>(.*?)</think>\n*(.*)", re.DOTALL)
_CLOSED_THINK = re.compile(r"(?:\s*<think>)?(.*?)</think>\n*(.*)", re.DOTALL)

_ANSWER, _SYSTEM = "zqanswerqz", "zqsystemqz"
_NAME, _VALUE, _RESULT = "zqnameqz", "zqvalueqz", "zqresultqz"


@dataclass(frozen=True)
class Shape:
    """What a template renders, and in which form it wants it.

    `parts`: content as [{"type": "text", "text": …}]; `no_content`: what stands for the content of a bare tool call;
    `string_arguments`: tool arguments as JSON text, else as a mapping; `opens_think`: the generation prompt opens a
    reasoning block; `splits_think`: content is split at a bare `</think>`. The rest says which parts of a conversation
    reach the rendered text at all.
    """

    parts: bool = False
    no_content: str | None = ""
    string_arguments: bool = False
    opens_think: bool = False
    splits_think: bool = False
    system: bool = True
    tools: bool = False
    tool_calls: bool = False
    tool_results: bool = False
    reasoning: bool = False

    @property
    def reads_think(self) -> bool:
        """Reasoning written inside the content is better given in its own field."""
        return self.reasoning or self.opens_think


def probe(template: Template) -> Shape:
    """Render small conversations and see what comes out."""
    def out(messages, tools=None, prompt=False, parts=False) -> str:
        if parts:
            messages = [{**m, "content": as_parts(m["content"])} for m in messages]
        try:
            return template.render(messages, tools, prompt=prompt)
        except RowError:
            return ""

    user, answer = {"role": "user", "content": "zquserqz"}, {"role": "assistant", "content": _ANSWER}
    flat = out([user, answer])
    parts = _ANSWER not in flat and _ANSWER in out([user, answer], parts=True)
    system = _SYSTEM in out([{"role": "system", "content": _SYSTEM}, user, answer], parts=parts)
    thought = {**answer, **dict.fromkeys(REASONING_KEYS[:2], "zqthoughtqz")}
    found = {
        "parts": parts, "system": system,
        "opens_think": THINK_OPEN.search(out([user], prompt=True, parts=parts)) is not None,
        "splits_think": "zqa</think>zqb" not in out([user, {**answer, "content": "zqa</think>zqb"}], parts=parts),
        "reasoning": "zqthoughtqz" in out([user, thought], parts=parts),
    }
    tool = {"type": "function", "function": {"name": _NAME, "description": "zqd", "parameters": {
        "type": "object", "properties": {"x": {"type": "string", "description": "zqx"}}, "required": ["x"]}}}
    for no_content, string in (("", False), (None, False), ("", True), (None, True)):
        arguments = json.dumps({"x": _VALUE}) if string else {"x": _VALUE}
        call = {"role": "assistant", "content": no_content, "tool_calls": [
            {"type": "function", "id": "callzq001", "function": {"name": _NAME, "arguments": arguments}}]}
        talk = [user, call]
        text = out(talk, parts=parts)
        if _NAME not in text or _VALUE not in text:
            continue
        result = {"role": "tool", "name": _NAME, "tool_call_id": "callzq001", "content": _RESULT}
        found |= {"no_content": no_content, "string_arguments": string, "tool_calls": True,
                  "tool_results": _RESULT in out([*talk, result], parts=parts)}
        break
    found["tools"] = _NAME in out([user, answer], [tool], parts=parts)
    return Shape(**found)


def as_parts(content: str | None) -> list[dict[str, str]]:
    """Text as the list of parts that some templates demand; nothing for an absent content."""
    return [{"type": "text", "text": content}] if content is not None else []


def as_text(message: dict[str, Any]) -> str | None:
    """The content of a message that `arrange` made, as one string."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(p["text"] for p in content)
    return content


def arrange(messages: list[dict[str, Any]], shape: Shape) -> list[dict[str, Any]]:
    """Messages as the template wants them: content flat or in parts, tool calls whole, reasoning in its own fields."""
    return [_arrange(m, i, shape) for i, m in enumerate(messages)]


def _arrange(message: dict[str, Any], index: int, shape: Shape) -> dict[str, Any]:
    role = message.get("role")
    made = {k: v for k, v in message.items()
            if v is not None and k not in ("weight", "tool_calls", *REASONING_KEYS)}
    content = _flat(message.get("content"), index, role)
    calls = [_call(c, index, shape) for c in message.get("tool_calls") or []]
    if role == "assistant":
        reasoning = next((message[k] for k in REASONING_KEYS if message.get(k)), None)
        if reasoning is None and content and shape.reads_think and "</think>" in content:
            bare = shape.opens_think or shape.splits_think
            inline = (_CLOSED_THINK if bare else _INLINE_THINK).fullmatch(content)
            if inline:
                reasoning, content = inline[1].strip("\n"), inline[2]
        if reasoning:
            made |= {"reasoning_content": reasoning, "thinking": reasoning}
    if calls:
        made["tool_calls"] = calls
        content = content or shape.no_content
    elif content is None:
        content = ""
    made["content"] = as_parts(content) if shape.parts else content
    return made


def _flat(content: Any, index: int, role: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, str) or isinstance(p, dict) and "type" in p for p in content):
        other = [p["type"] for p in content if isinstance(p, dict) and not isinstance(p.get("text"), str)]
        if other:
            raise RowError("only text can be trained", found=f"message {index} ({role}): a part of type {other[0]}",
                           expected="parts of type text", fix="remove the part or the row")
        return "".join(p if isinstance(p, str) else p["text"] for p in content)
    if role == "tool":
        return json.dumps(content, ensure_ascii=False)
    raise RowError("the content of a message is not text", found=f"message {index} ({role}): {content!r:.80}",
                   expected="a string, or a list of text parts", fix="mend the row")


def _call(call: Any, index: int, shape: Shape) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RowError("a tool call has no name", found=f"message {index}: {call!r:.80}",
                       expected='{"function": {"name": …, "arguments": …}}', fix="mend the row")
    arguments = function.get("arguments")
    arguments = {} if arguments is None else arguments
    if isinstance(arguments, str):
        try:
            parsed = json.loads(arguments)
        except ValueError:
            parsed = None
        arguments = parsed if isinstance(parsed, dict) else arguments
    if shape.string_arguments and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    extra = {k: v for k, v in call.items() if k == "id" and v is not None}
    return {"type": "function", **extra, "function": {**function, "arguments": arguments}}


def arrange_tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Tool definitions in the form templates expect: {"type": "function", "function": {…}}."""
    if not tools:
        return None
    return [{"type": "function", "function": t} if isinstance(t, dict) and "function" not in t and "name" in t else t
            for t in tools]


def left_out(messages: list[dict[str, Any]], tools: list | None, shape: Shape) -> tuple[str, ...]:
    """Parts of an arranged conversation that the template never renders, in words."""
    roles = {m["role"] for m in messages}
    absent = [
        ("the system message", not shape.system and "system" in roles),
        ("the tool definitions", not shape.tools and tools is not None),
        ("the tool results", not shape.tool_results and "tool" in roles),
    ]
    return tuple(f"{what}: not rendered by the template" for what, is_so in absent if is_so)
