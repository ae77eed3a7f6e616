"""An OpenAI-compatible endpoint, played by a server in this process."""

from __future__ import annotations

import threading
import time

import pytest
from serving import JsonHandler, served

from posttrain.core.errors import UserError
from posttrain.eval.endpoint import Endpoint, is_endpoint


class Handler(JsonHandler):
    seen: list = []
    held = threading.Event()

    def do_GET(self):
        if self.path.startswith("/nowhere"):
            return self.send({"error": "no such path"}, 404)
        return self.send({"data": [{"id": "first"}, {"id": "second"}]} if self.path == "/v1/models" else {"data": []})

    def do_POST(self):
        asked = self.asked()
        self.seen.append((self.path, self.headers.get("Authorization"), asked))
        said = asked["messages"][-1]["content"]
        if said == "refuse":
            return self.send({"error": "no such model"}, 404)
        if said == "break":
            return self.send({"choices": []})
        if said == "wait":
            self.held.wait(60)
        if said == "garble":
            return self.send(b"<html>")
        return self.send({"choices": [{"message": {"content": f" {said}! "},
                                        "finish_reason": "length" if said == "long" else "stop"}]})


@pytest.fixture(scope="module")
def url():
    with served(Handler) as at:
        yield at
        Handler.held.set()


def ask(endpoint, *texts):
    return endpoint.answers([[{"role": "user", "content": t}] for t in texts], max_new_tokens=9, seed=3)


def test_answers_come_in_order_and_say_whether_they_stopped(url, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    endpoint = Endpoint(f"{url}/v1/")
    assert endpoint.describe() == f"first at {url}/v1"
    found = ask(endpoint, *map(str, range(20)), "long")
    assert [a.text for a in found] == [f"{i}!" for i in range(20)] + ["long!"]
    assert [a.stopped for a in found] == [True] * 20 + [False]
    path, key, body = Handler.seen[-1]
    assert path == "/v1/chat/completions" and key == "Bearer k"
    assert {k: body[k] for k in body if k != "messages"} == {"model": "first", "max_tokens": 9, "temperature": 0.0,
                                                             "top_p": 1.0, "seed": 3}


def test_the_model_may_be_named(url):
    assert Endpoint(f"{url}/v1#second").model == "second"
    assert is_endpoint("https://x") and not is_endpoint("runs/http")


@pytest.mark.parametrize(("said", "message", "found"), [
    ("refuse", "the endpoint refused", "HTTP 404"), ("break", "the endpoint's reply holds no answer", "choices"),
    ("garble", "the endpoint gave no answer", "Expecting value")])
def test_what_an_endpoint_may_do_wrong(url, said, message, found):
    with pytest.raises(UserError, match=message) as caught:
        ask(Endpoint(f"{url}/v1#m"), said)
    assert found in caught.value.found and caught.value.where == f"{url}/v1/chat/completions"


def test_nobody_there(url):
    with pytest.raises(UserError, match="the endpoint gave no answer") as caught:
        Endpoint("http://127.0.0.1:9/v1")
    assert "check that it runs" in caught.value.fix
    with pytest.raises(UserError, match="the endpoint lists no model"):
        Endpoint(url)


def test_the_first_error_waits_for_no_other_answer(url):
    began = time.monotonic()
    with pytest.raises(UserError, match="the endpoint refused"):
        ask(Endpoint(f"{url}/v1#m"), "refuse", *["wait"] * 20)
    assert time.monotonic() - began < 30
    assert sum(body["messages"][-1]["content"] == "wait" for *_, body in Handler.seen) < 20  # the rest is never asked


def test_a_server_that_refuses_to_list_is_there_and_one_that_is_down_is_not(url):
    Endpoint(f"{url}/nowhere#m").check()
    with pytest.raises(UserError, match="the endpoint gave no answer") as caught:
        Endpoint("http://127.0.0.1:9/v1#m").check()
    assert "refused" in caught.value.found
