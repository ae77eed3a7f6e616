"""Messages of every dialect (OpenAI, ShareGPT, content parts) as chat templates take them, and their order."""

from __future__ import annotations

import difflib
import json
from typing import Any

from ..core.errors import RowError

CALL = "function_call"
# The names that data sets give the roles, in lower case.
ROLES = {
    "system": "system", "developer": "system",
    "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    CALL: CALL, "tool_call": CALL,
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "tool_response": "tool",
}
_WEIGHTS = ("weight", "loss_weight", "train")
_REASONING = ("reasoning_content", "reasoning", "thinking")
# Role -> roles that may follow; "" is the beginning. An assistant that called tools is "call".
_NEXT = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",),
         "call": ("tool",), "tool": ("tool", "assistant")}
FIX = "mend the row, or set bad_rows=skip to drop it and count it"


def shown(value: Any) -> str:
    """A JSON value in an error: what it is, and its beginning."""
    kinds = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "text",
             list: "a list", dict: "an object"}
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return kind if value is None else f"{json.dumps(value, ensure_ascii=False, default=str)[:60]} ({kind})"


def plain_text(value: Any, what: str, origin: str) -> str:
    """`value` if it is text; RowError for numbers, null, lists."""
    if isinstance(value, str):
        return value
    raise RowError(f"{what} is not text", where=origin, found=shown(value), expected="text in quotes", fix=FIX)


def json_value(value: Any, what: str, origin: str) -> Any:
    """Text is parsed as JSON (CSV and many sets keep lists as text), "" and null are None, the rest is itself."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as e:
        raise RowError(f"{what} is not valid JSON", where=origin, found=f"{e}: {value[:60]}", expected="JSON",
                       fix=FIX) from None


def read_tools(value: Any, origin: str) -> list[dict[str, Any]] | None:
    """JSON schemas of tools, each as {"type": "function", "function": …}; None if there are none."""
    tools = json_value(value, "the list of tools", origin)
    if isinstance(tools, dict):
        tools = [tools]
    if tools is None or tools == []:
        return None
    if not isinstance(tools, list) or not all(isinstance(t, dict) for t in tools):
        raise RowError("the tools are no list of JSON schemas", where=origin, found=shown(tools),
                       expected='[{"type": "function", "function": {"name": …}}]', fix=FIX)
    return [t if "function" in t else {"type": "function", "function": t} for t in tools]


def read_messages(value: Any, origin: str) -> list[dict[str, Any]]:
    """A list of messages in any dialect -> role, content, and where present reasoning_content, tool_calls,
    tool_call_id, name, weight (0 or 1).

    A call that stands in a message of its own joins the assistant turn before it, as templates want it.
    """
    value = json_value(value, "the list of messages", origin)
    if not isinstance(value, list) or not all(isinstance(m, dict) for m in value):
        raise RowError("the messages are no list of messages", where=origin, found=shown(value),
                       expected='[{"role": "user", "content": …}, …]', fix=FIX)
    messages: list[dict[str, Any]] = []
    for n, raw in enumerate(value, 1):
        role = _role(raw, n, origin)
        message = _message(raw, role, n, origin)
        if role == CALL and messages and messages[-1]["role"] == "assistant":
            messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
            if "weight" in message:
                messages[-1]["weight"] = message["weight"]
        else:
            messages.append(message)
    return messages


def _role(raw: dict[str, Any], n: int, origin: str) -> str:
    name = raw["role"] if "role" in raw else raw.get("from")
    if isinstance(name, str) and (role := ROLES.get(name.strip().lower())):
        return role
    if name is None:
        raise RowError(f"message {n} has no role", where=origin, found=", ".join(raw) or "an empty message",
                       expected="`role` or `from`", fix=FIX)
    near = difflib.get_close_matches(str(name).lower(), ROLES, n=1, cutoff=0.5)
    raise RowError(f"message {n} has an unknown role", where=origin, found=shown(name),
                   expected=", ".join(ROLES), fix=f"did you mean `{near[0]}`? {FIX}" if near else FIX)


def _message(raw: dict[str, Any], role: str, n: int, origin: str) -> dict[str, Any]:
    what = f"the content of message {n}"
    content = next((raw[k] for k in ("content", "value", "text") if k in raw), None)
    calls: list[dict[str, Any]] = []
    reasoning = [raw[k] for k in _REASONING if raw.get(k) not in (None, "")][:1]
    if role == CALL:
        calls, content = _calls(content, n, origin), ""
    elif isinstance(content, list):
        content, thoughts, calls = _content_parts(content, n, origin)
        reasoning += thoughts
    calls = calls + _calls(raw.get("tool_calls") or raw.get("function_call") or [], n, origin)
    content = "" if content is None and calls else plain_text(content, what, origin)
    message: dict[str, Any] = {"role": "assistant" if role == CALL else role, "content": content}
    if calls or reasoning:
        if message["role"] != "assistant":
            raise RowError(f"message {n} is no assistant's, but {'calls tools' if calls else 'reasons'}", where=origin,
                           found=f"role {role}", expected="tool calls and reasoning in assistant turns", fix=FIX)
        if reasoning:
            message["reasoning_content"] = "".join(plain_text(r, f"the reasoning of message {n}", origin)
                                                   for r in reasoning)
        if calls:
            message["tool_calls"] = calls
    for key in ("tool_call_id", "name") if role == "tool" else ():
        if raw.get(key) is not None:
            message[key] = plain_text(raw[key], f"`{key}` of message {n}", origin)
    weight = _weight(raw, message["role"], n, origin)
    return message if weight is None else {**message, "weight": weight}


def _content_parts(parts: list[Any], n: int, origin: str) -> tuple[str, list[str], list[dict[str, Any]]]:
    """[{"type": "text", …}, …] -> text, reasoning, calls."""
    text, thoughts, calls = "", [], []
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else "text"
        value = part
        if isinstance(part, dict):
            value = next((part[k] for k in (kind, "text", "value", "content") if k in part), None)
        if kind == "text":
            text += plain_text(value, f"the content of message {n}", origin)
        elif kind in ("reasoning", "thinking"):
            thoughts.append(plain_text(value, f"the reasoning of message {n}", origin))
        elif kind == "tool_call":
            calls += _calls(value, n, origin)
        else:
            raise RowError(f"message {n} holds content that is not text", where=origin, found=shown(kind),
                           expected="parts of type text, reasoning or tool_call", fix=FIX)
    return text, thoughts, calls


def _calls(value: Any, n: int, origin: str) -> list[dict[str, Any]]:
    """Tool calls of any dialect -> {"type": "function", "function": {"name", "arguments": dict}}, `id` kept."""
    calls = json_value(value, f"the tool call of message {n}", origin)
    result = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise RowError(f"the tool call of message {n} names no function", where=origin, found=shown(call),
                           expected='{"name": …, "arguments": {…}}', fix=FIX)
        arguments = json_value(function.get("arguments", function.get("parameters")),
                               f"the arguments of the tool call of message {n}", origin)
        if not isinstance(arguments, dict | None):
            raise RowError(f"the arguments of the tool call of message {n} are no object", where=origin,
                           found=shown(arguments), expected='{"name": value}', fix=FIX)
        made = {"type": "function", "function": {"name": name, "arguments": arguments or {}}}
        result.append({"id": call["id"], **made} if isinstance(call.get("id"), str) else made)
    return result


def _weight(raw: dict[str, Any], role: str, n: int, origin: str) -> int | None:
    """0 or 1 as the message says; None if it says nothing, or says 0 of a turn that is never trained."""
    value = next((raw[k] for k in _WEIGHTS if raw.get(k) is not None), None)
    if value is None:
        return None
    if value not in (0, 1):
        raise RowError(f"the weight of message {n} is neither 0 nor 1", where=origin, found=shown(value),
                       expected="0 (read, not trained) or 1 (trained)", fix=FIX)
    if role == "assistant":
        return int(value)
    if value:
        raise RowError(f"message {n} has weight 1, but only assistant turns are trained", where=origin,
                       found=f"role {role}", expected="weight 0, or none",
                       fix="take the weight away; train_on=all_tokens trains every turn")
    return None


def check_order(messages: list[dict[str, Any]], origin: str) -> None:
    """RowError unless the turns are [system] (user assistant)*, where an assistant's calls are answered by tools.

    The conversation may end anywhere after its first assistant turn; what follows the last one is read, not trained.
    """
    before = ""
    for n, message in enumerate(messages, 1):
        role = message["role"]
        if role not in _NEXT[before]:
            after = {"": "at the beginning", "call": "after a tool call"}.get(before, f"after {before}")
            raise RowError("the roles are out of order", where=origin, found=f"message {n} is {role} {after}",
                           expected=" or ".join(_NEXT[before]), fix=FIX)
        before = "call" if message.get("tool_calls") else role
    if not any(m["role"] == "assistant" for m in messages):
        raise RowError("the conversation has no assistant turn", where=origin,
                       found=", ".join(m["role"] for m in messages) or "no messages",
                       expected="at least one answer to train on", fix=FIX)
