"""The conversation in the terminal, on a model of canned answers."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass, field

import pytest

from posttrain.app import assistant as assistant_module
from posttrain.app.cli import main
from posttrain.core.errors import UserError


@dataclass
class Canned:
    text: str
    ids: list
    stopped: bool


@dataclass
class Parrot:
    """Says how many messages it was given and the last of them."""

    name: str = "parrot"
    heard: list = field(default_factory=list)
    how: dict = field(default_factory=dict)

    def describe(self) -> str:
        return "says it again"

    def answer(self, messages, on_text=None, **how):
        self.heard.append(messages)
        self.how = how
        if messages[-1]["content"] == "wait":
            on_text("half ")
            raise KeyboardInterrupt
        text = f"{len(messages)}:{messages[-1]['content']}"
        for piece in (text[:2], text[2:]):
            on_text(piece)
        return Canned(text, [1, 2], messages[-1]["content"] != "endless")

    def answers(self, conversations, system=None, **how):
        return [Canned(f"{self.name} on {c[-1]['content']}", [1], c[-1]["content"] != "endless")
                for c in conversations]


@pytest.fixture
def parrot(monkeypatch):
    bird = Parrot()
    monkeypatch.setattr(assistant_module, "load", lambda name, settings=None: bird)
    return bird


def talk(monkeypatch, capsys, *lines: str, argv: tuple[str, ...] = ()) -> str:
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    assert main(["chat", "parrot", *argv]) == 0
    return capsys.readouterr().out


def test_turns_follow_each_other(parrot, monkeypatch, capsys):
    out = talk(monkeypatch, capsys, "one", "", "two")
    assert out == "1:one\n3:two\n"
    assert [m["content"] for m in parrot.heard[1]] == ["one", "1:one", "two"]


def test_reset_keeps_the_system_prompt(parrot, monkeypatch, capsys):
    talk(monkeypatch, capsys, "one", "/reset", "two", argv=("--system", "be brief"))
    assert [m["content"] for m in parrot.heard[1]] == ["be brief", "two"]


def test_system_can_be_changed(parrot, monkeypatch, capsys):
    talk(monkeypatch, capsys, "/system be kind", "one", "/system", "two")
    assert [[m["content"] for m in heard] for heard in parrot.heard] == [["be kind", "one"], ["two"]]


def test_exit_and_help(parrot, monkeypatch, capsys):
    out = talk(monkeypatch, capsys, "/help", "/what", "/exit", "never")
    assert "/reset" in out and "there is no command /what" in out and not parrot.heard


def test_ctrl_c_ends_the_answer_only(parrot, monkeypatch, capsys):
    out = talk(monkeypatch, capsys, "wait", "go on")
    assert "(interrupted)" in out and "3:go on" in out
    assert parrot.heard[1][1] == {"role": "assistant", "content": "half "}


def test_an_answer_that_never_stops_says_so(parrot, monkeypatch, capsys):
    assert "cut after 9 tokens: raise --max_new_tokens" in talk(monkeypatch, capsys, "endless",
                                                                argv=("--max_new_tokens", "9"))


def test_ctrl_c_before_the_first_word_takes_the_question_back(parrot, monkeypatch, capsys):
    real = parrot.answer
    monkeypatch.setattr(parrot, "answer", lambda messages, on_text, **how: real(messages, lambda text: None, **how))
    talk(monkeypatch, capsys, "wait", "go on")
    assert parrot.heard[1] == [{"role": "user", "content": "go on"}]


def test_what_the_template_refuses_does_not_end_the_conversation(parrot, monkeypatch, capsys):
    def refuse(messages, **how):
        if messages[-1]["content"] == "bad":
            raise UserError("the template refuses")
        return real(messages, **how)

    real = parrot.answer
    monkeypatch.setattr(parrot, "answer", refuse)
    monkeypatch.setattr("sys.stdin", io.StringIO("bad\n"))
    assert main(["chat", "parrot"]) == 2  # a script is told by the exit code
    monkeypatch.setattr("sys.stdin", io.StringIO("bad\ngood\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda _: sys.stdin.readline().rstrip("\n") or "/exit")
    capsys.readouterr()
    assert main(["chat", "parrot"]) == 0
    said = capsys.readouterr().out
    assert "the template refuses" in said and "1:good" in said


def test_input_that_is_no_text(parrot, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    assert main(["chat", "parrot"]) == 2
    assert "the input is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [["chat", "parrot", "--prompt", "hi"], ["compare", "a", "b", "--questions", "q.txt"]])
def test_sampling_keys_that_would_change_nothing(parrot, capsys, verb):
    assert main([*verb, "--top_p", "0.5", "--seed", "3"]) == 2
    said = capsys.readouterr().err
    assert "top_p and seed changes nothing at temperature 0" in said and "drop --top_p and --seed" in said


def test_one_answer(parrot, capsys):
    assert main(["chat", "parrot", "--prompt", "hi", "--temperature", "0.5", "--seed", "7", "--system", "s"]) == 0
    said = capsys.readouterr()
    assert said.out == "2:hi\n"
    assert parrot.how == {"max_new_tokens": 256, "temperature": 0.5, "top_p": 1.0, "seed": 7}


def test_one_answer_as_json(parrot, capsys):
    assert main(["chat", "parrot", "--prompt", "hi", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"prompt": "hi", "answer": "parrot on hi", "stopped": True,
                                                   "tokens": 1}
    assert main(["chat", "parrot", "--json"]) == 2
    assert "add --prompt" in capsys.readouterr().err


def questions(tmp_path, name: str, text: str) -> str:
    (tmp_path / name).write_text(text, "utf-8")
    return str(tmp_path / name)


@pytest.mark.parametrize(("name", "text"), [
    ("q.txt", "first?\n\nendless\n"),
    ("s.jsonl", '{"conversations": [{"from": "human", "value": "first?"}, {"from": "gpt", "value": "x"}]}\n'
                '{"conversations": [{"from": "human", "value": "endless"}, {"from": "gpt", "value": "y"}]}\n'),
    ("q.jsonl", '{"prompt": "first?"}\n{"question": "endless"}\n'),
    ("q.json", '[{"instruction": "first?", "input": ""}, {"messages": [{"role": "user", "content": "endless"}, '
               '{"role": "assistant", "content": "x"}]}]')])
def test_compare(parrot, tmp_path, capsys, name, text):
    file = questions(tmp_path, name, text)
    assert main(["compare", "a", "b", "--questions", file, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base"] == "a" and found["tuned"] == "b"
    assert [row["prompt"] for row in found["answers"]] == ["first?", "endless"]
    assert found["answers"][0]["tuned"] == {"answer": "parrot on first?", "stopped": True, "tokens": 1}
    assert main(["compare", "a", "b", "--questions", file]) == 0
    out = capsys.readouterr().out
    assert "base: a" in out and "never stopped" in out and "b: 1 of 2 answers stopped" in out


def test_questions_without_answers_in_parts(parrot, tmp_path, capsys):
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    file = questions(tmp_path, "parts.jsonl", json.dumps(row) + "\n")
    assert main(["compare", "a", "b", "--questions", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["answers"][0]["prompt"] == "hi"
    (tmp_path / "q.txt").write_bytes(b"caf\xe9\n")
    assert main(["compare", "a", "b", "--questions", str(tmp_path / "q.txt")]) == 2
    assert "the file of questions is not UTF-8 text" in capsys.readouterr().err


def test_compare_says_what_is_wrong(parrot, tmp_path, capsys):
    for argv, part in (([], "there are no questions to ask"),
                       (["--questions", "absent.txt"], "the file of questions does not exist"),
                       (["--questions", questions(tmp_path, "e.txt", "\n")], "the file holds no questions"),
                       (["--questions", questions(tmp_path, "m.jsonl", '{"messages": "hello"}\n')],
                        "the list of messages"),
                       (["--questions", questions(tmp_path, "n.jsonl", '{"messages": ["hi"]}\n')],
                        "the messages are no list of messages"),
                       (["--questions", questions(tmp_path, "c.jsonl", '{"colour": "red"}\n')],
                        "a row holds no question")):
        assert main(["compare", "a", "b", *argv]) == 2
        assert part in capsys.readouterr().err
