"""The vote page over HTTP: what it shows, what it takes, what it refuses, and that a second start goes on."""

import http.client
import json
import threading
import time

import pytest

from posttrain.app.vote import Box, serve, tell
from posttrain.core.errors import UserError
from posttrain.data.read import open_source

SCRIPT = "<script>document.title = 'taken'</script>"
ALL_LEFT = {"helpful": "left", "harmless": "left", "honest": "left"}


class Quiet:
    def __init__(self):
        self.lines = []

    def print(self, text, **how):
        self.lines.append(text)


def make_box(path, count=3):
    pairs = [([{"role": "user", "content": f"question {i}"}], f"answer {i} {SCRIPT}", f"other {i}")
             for i in range(count)]
    return Box(path, ("first model", "second model"), [*pairs, (pairs[0][0], "equal", "equal")], seed=0)


@pytest.fixture
def page(tmp_path):
    """A served box: (box, ask); ask(method, path, body, **headers) -> (status, headers, body)."""
    box, console = make_box(tmp_path / "votes.jsonl"), Quiet()
    thread = threading.Thread(target=serve, args=(box, 0, console), daemon=True)
    thread.start()
    while not console.lines:
        time.sleep(0.01)
    port = int(console.lines[0].split(":")[2].split("/")[0])

    def ask(method, path, body=None, **headers):
        talk = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        talk.request(method, path, None if body is None else json.dumps(body), headers)
        answer = talk.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    yield box, ask
    box.done.set()
    thread.join(5)


def test_voted_through_with_a_second_start_in_between(page, tmp_path):
    box, ask = page
    state = json.loads(ask("GET", "/state")[2])
    assert (state["number"], state["of"], state["voted"]) == (0, 3, 0) and box.same == 1
    assert "model" not in json.dumps(state)  # blind
    state = json.loads(ask("POST", "/vote", ALL_LEFT | {"number": 0, "comment": "好"})[2])
    assert (state["number"], state["voted"]) == (1, 1)
    assert json.loads(ask("POST", "/vote", ALL_LEFT | {"number": 0})[2])["voted"] == 1  # twice is once
    again = make_box(tmp_path / "votes.jsonl")
    assert again.left() == 2 and again.state()["number"] == 1
    ask("POST", "/vote", ALL_LEFT | {"number": 1})
    state = json.loads(ask("POST", "/vote", ALL_LEFT | {"number": 2})[2])
    assert state["number"] is None and state["models"] == {"a": "first model", "b": "second model"}
    assert not box.done.is_set()
    ask("POST", "/end", {})
    assert box.done.wait(2)
    source = open_source(str(tmp_path / "votes.jsonl"), objective="dpo")
    assert source.format.name == "votes" and len(source) == 3
    row, vote = source.row(0), box.votes()[0]
    assert row.answers[0][-1]["content"] == vote[vote["verdict"]]
    assert vote["comment"] == "好" and vote["left"] == vote["verdict"]


def test_the_page_is_closed_to_others(page):
    _, ask = page
    status, headers, body = ask("GET", "/")
    assert status == 200 and SCRIPT not in body
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "NONCE" not in body
    assert ask("GET", "/", Host="example.org")[0] == 403
    assert ask("POST", "/vote", ALL_LEFT | {"number": 0}, Origin="http://example.org")[0] == 403
    assert ask("POST", "/vote", ALL_LEFT | {"number": 0}, Content_Type="text/plain")[0] == 400
    assert ask("GET", "/../votes.jsonl")[0] == 404


@pytest.mark.parametrize(("body", "message"), [
    ({"number": 7}, "the vote names no question"), ([1], "the vote names no question"),
    ({"number": 0, "helpful": "left"}, "the vote is not complete")])
def test_a_wrong_vote_is_an_answer_not_a_crash(page, body, message):
    box, ask = page
    status, _, said = ask("POST", "/vote", body)
    assert status == 400 and message in json.loads(said)["error"] and box.left() == 3


def test_a_taken_port_is_an_error(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="the page cannot be served"):
            serve(make_box(tmp_path / "v"), taken.getsockname()[1], Quiet())


def test_the_outcome_in_the_terminal(tmp_path):
    box, console = make_box(tmp_path / "votes.jsonl"), Quiet()
    for number in range(3):
        box.cast(ALL_LEFT | {"number": number})
    tell(box, box.votes(), console)
    text = "\n".join(console.lines)
    assert text.startswith("3 of 3 voted on; 1 with equal answers were not asked")
    assert "A = first model, B = second model" in text and "sign test p = " in text
    assert f"posttrain dpo --data {box.path}" in text
