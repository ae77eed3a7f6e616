"""Answers of an OpenAI-compatible endpoint: chat completions over HTTP, by the standard library alone."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from ..core.errors import UserError
from .answers import Answer

AT_ONCE = 8  # requests under way together
PATIENCE = 600.0  # seconds for one answer
LISTING = 30.0  # seconds for the list of models
KEY = "OPENAI_API_KEY"


def is_endpoint(name: str) -> bool:
    return name.startswith(("http://", "https://"))


class Refused(UserError):
    """The endpoint is there, and answered with an HTTP error."""


class Endpoint:
    """`URL[#MODEL]`, such as http://localhost:8000/v1#qwen3; without a model the first that the endpoint lists.

    A key is read from the environment variable OPENAI_API_KEY and sent as a bearer token; it is stored nowhere.
    """

    def __init__(self, name: str):
        self.name = name
        self.url, _, self.model = name.partition("#")
        self.url = self.url.rstrip("/")
        if not self.model:
            listed = self._call("/models", patience=LISTING).get("data") or []
            if not listed or not isinstance(listed[0], dict) or "id" not in listed[0]:
                raise UserError("the endpoint lists no model", where=f"{self.url}/models", found=str(listed)[:200],
                                fix="name one after #, as in http://localhost:8000/v1#qwen3")
            self.model = str(listed[0]["id"])

    def describe(self) -> str:
        return f"{self.model} at {self.url}"

    def check(self) -> None:
        """Stop where nobody answers; a server that refuses to list its models is one all the same."""
        with suppress(Refused):
            self._call("/models", patience=LISTING)

    def answers(self, conversations: list[list[dict[str, Any]]], *, max_new_tokens: int, temperature: float = 0.0,
                top_p: float = 1.0, seed: int = 0) -> list[Answer]:
        """An Answer to each conversation, in order; an answer counts as stopped where `finish_reason` says `stop`."""
        def one(messages: list[dict[str, Any]]) -> Answer:
            body = {"model": self.model, "messages": messages, "max_tokens": max_new_tokens,
                    "temperature": temperature, "top_p": top_p, "seed": seed}
            return self._answer(self._call("/chat/completions", body))

        return at_once(one, conversations)

    def _answer(self, reply: dict[str, Any]) -> Answer:
        try:
            choice = reply["choices"][0]
            return Answer((choice["message"].get("content") or "").strip(), [], choice.get("finish_reason") == "stop")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise UserError("the endpoint's reply holds no answer", where=f"{self.url}/chat/completions",
                            found=json.dumps(reply)[:300], expected="choices[0].message.content") from None

    def _call(self, path: str, body: dict[str, Any] | None = None, patience: float = PATIENCE) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        where = self.url + path
        try:
            with urllib.request.urlopen(urllib.request.Request(where, data, headers), timeout=patience) as reply:
                read = json.loads(reply.read())
        except urllib.error.HTTPError as e:
            raise Refused("the endpoint refused", where=where, found=f"HTTP {e.code}: "
                          f"{e.read(300).decode('utf-8', 'replace')}", fix=f"check the URL, the model, and {KEY}"
                          ) from None
        except (OSError, ValueError) as e:  # no connection, a time-out, no JSON
            raise UserError("the endpoint gave no answer", where=where, found=str(e)[:300],
                            expected="an OpenAI-compatible server", fix="check that it runs and that the URL ends in "
                            "/v1 where it must") from None
        if not isinstance(read, dict):
            raise UserError("the endpoint's reply holds no answer", where=where, found=str(read)[:300])
        return read


def at_once(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """work(item) of each, AT_ONCE together, in order; an error, or Ctrl-C, does not wait for what is under way
    (test_endpoint.py::test_the_first_error_waits_for_no_other_answer)."""
    todo: SimpleQueue[tuple[Any, Future]] = SimpleQueue()
    made = [Future() for _ in items]
    for pair in zip(items, made, strict=True):
        todo.put(pair)

    def take() -> None:
        while True:
            try:
                item, future = todo.get_nowait()
            except Empty:
                return
            try:
                future.set_result(work(item))
            except BaseException as e:  # whatever it is, it is raised where the answers are awaited
                future.set_exception(e)

    for _ in range(min(AT_ONCE, len(items))):
        Thread(target=take, daemon=True).start()
    try:
        return [future.result() for future in made]
    finally:
        with suppress(Empty):
            while True:
                todo.get_nowait()
