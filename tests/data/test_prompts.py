"""Rows as prompts: what is asked, what is kept for the reward, and what is no prompt at all."""

import json

import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Row
from posttrain.data.prompts import detect_prompts
from posttrain.data.read import open_source
from posttrain.data.render import Renderer
from posttrain.data.weigh import EMPTY_PROMPT, TOO_LONG

USER, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}


def read(row: dict, **overrides) -> Row:
    return detect_prompts(list(row), [row], overrides).to_row(row, "f:1")


@pytest.mark.parametrize(("row", "answer"), [
    ({"instruction": "why?", "input": "", "output": "so."}, "so."),
    ({"prompt": "why?", "completion": "so."}, "so."),
    ({"question": "why?", "answer": "so."}, "so."),
    ({"prompt": "why?"}, None),
    ({"prompt": "why?", "chosen": "a", "rejected": "b"}, "a"),
    ({"chosen": "\n\nHuman: why?\n\nAssistant: a", "rejected": "\n\nHuman: why?\n\nAssistant: b"}, "a"),
    ({"chosen": [USER, ANSWER], "rejected": [USER, {"role": "assistant", "content": "b"}]}, "so."),
    ({"conversations": [{"from": "human", "value": "why?"}], "chosen": {"from": "gpt", "value": "a"},
      "rejected": {"from": "gpt", "value": "b"}}, "a"),
    ({"messages": [USER, ANSWER], "prompt": "why?", "chosen": [USER, ANSWER],
      "rejected": [USER, {"role": "assistant", "content": "b"}]}, "so."),
    ({"instruction": "why?", "input": "", "output": ["a", "b"]}, None),
    ({"prompt": "why?", "answers": ["a"]}, None),
    ({"problem": "why?", "answers": ["a"], "solution": "so."}, "so."),
    ({"conversations": [{"from": "human", "value": "why?"}], "responses": ["a", "b"]}, None),
    ({"messages": [USER], "a": "x", "b": "y", "verdict": "tie"}, None),
    ({"prompt": "why?", "response_a": "x", "response_b": "y", "winner": "model_b"}, None),
    ({"conversation_a": [USER, ANSWER], "conversation_b": [USER, ANSWER], "winner": "tie"}, None),
    ({"prompt": "why?", "completion": "so.", "label": True}, "so."),
    ({"messages": [USER, ANSWER], "label": False}, None),
    ({"question": "why?", "answer": "so.", "label": "easy"}, "so."),
    ({"problem": "why?", "solution": "so."}, "so."),
    ({"messages": [USER, ANSWER]}, "so."),
    ({"messages": [USER]}, None),
    ({"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so."}]}, "so.")], ids=str)
def test_the_answer_is_no_part_of_the_prompt(row, answer):
    made = read(row)
    assert made.kind == "prompt" and [m["content"] for m in made.messages] == ["why?"]
    assert made.raw.get("answer") == answer and made.raw.items() >= row.items()


def test_a_conversation_up_to_its_last_answer():
    earlier = [{"role": "system", "content": "be brief"}, USER, ANSWER]
    made = read({"messages": [*earlier, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "yes."}]})
    assert [m["content"] for m in made.messages] == ["be brief", "why?", "so.", "and?"]
    assert made.raw["answer"] == "yes."
    assert read({"messages": [*earlier, {"role": "user", "content": "and?"}]}).messages[-1]["content"] == "and?"


def test_prompts_of_preference_rows_keep_what_stands_around_them():
    asked = {"instruction": "why?", "input": "now"}
    made = read({**asked, "system": "s", "history": [["one", "two"]], "output": ["a", "b"]})
    assert [m["content"] for m in made.messages] == ["s", "one", "two", "why?\nnow"]
    made = read({**asked, "responses": ["a", "b"], "scores": [1, 2]})
    assert [m["content"] for m in made.messages] == ["why?\nnow"]
    fmt = detect_prompts(["instruction", "responses", "scores"], [{"instruction": "why?", "responses": ["a", "b"]}])
    assert (fmt.name, fmt.unused) == ("ranked answers", ("responses", "scores"))
    made = read({"q": "why?", "good": "a", "bad": "b"}, prompt="q", chosen="good", rejected="bad")
    assert made.messages == [USER] and made.raw["answer"] == "a"
    made = read({"q": "why?", "good": "a", "rejected": "b", "chosen": "c"}, prompt="q", response="good")
    assert made.messages == [USER] and made.raw["answer"] == "a"


def test_contexts_that_differ_are_a_counted_drop(tmp_path):
    from posttrain.builtin import builtin_model_path
    from posttrain.core.config import make_settings
    from posttrain.data.check import check
    from posttrain.data.tokenizer import load_tokenizer

    pair = {"chosen": "\n\nHuman: why?\n\nAssistant: a", "rejected": "\n\nHuman: why?\n\nAssistant: b", "note": 1}
    assert read({**pair, "rejected": "\n\nHuman: who?\n\nAssistant: b"}).dropped == "contexts differ"
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in (pair, pair, {**pair, "rejected": "Human: x"})))
    settings = make_settings({"objective": "ppo", "data": str(file), "reward": "exact", "max_lost": 1})
    report = check(settings, load_tokenizer(str(builtin_model_path())))
    assert report.ledger.to_json()["rows"] == {"read": 3, "trained": 2, "cut": 0, "dropped": {"contexts differ": 1}}
    assert report.sources[0]["format"] == "preference pairs" and report.sources[0]["not_read"] == ["note"]
    assert [(f.kind, f.rows) for f in report.found] == [
        ("contexts differ", [f"{file}:3"]), ("duplicate", [f"{file}:2 = {file}:1"])]


def test_an_answer_column_of_the_row_stays():
    assert read({"prompt": "2+2?", "completion": "It is 4.", "answer": "4"}).raw["answer"] == "4"


def test_columns_are_named():
    made = read({"task": "why?", "gold": "so."}, prompt="task", response="gold")
    assert made.messages[0]["content"] == "why?" and made.raw["answer"] == "so."


def test_what_is_no_prompt():
    with pytest.raises(UserError) as e:
        detect_prompts(["text"], [{"text": "prose"}])
    assert str(e.value).startswith("error: the rows have no prompt to answer\n  found:    text\n"
                                   "  expected: a column of prompts, or conversations")
    with pytest.raises(UserError, match="no known format has these columns"):
        detect_prompts(["a", "b"], [{"a": 1, "b": 2}])


def test_a_row_in_which_nobody_asks():
    fmt = detect_prompts(["messages"], [{"messages": [USER]}])
    with pytest.raises(RowError):
        fmt.to_row({"messages": [{"role": "system", "content": "x"}]}, "f:1")


def test_a_source_reads_prompts(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "why?"}) + "\n")
    source = open_source(str(file), objective="ppo")
    assert source.row(0).messages == [USER] and source.row(0).origin == f"{file}:1"
    with pytest.raises(UserError):
        open_source(str(file)).row(0)


def test_prompts_are_what_generation_is_given(tiny_model):
    from posttrain.data.show import summary
    from posttrain.data.tokenizer import load_tokenizer

    renderer = Renderer(load_tokenizer(str(tiny_model)), max_length=12)
    rows = [Row("prompt", f"f:{i}", messages=[{"role": "user", "content": text}])
            for i, text in enumerate(["red", "red green blue one two three cat dog", "  "])]
    short, long, empty = renderer.render(rows)
    sequence, = short.sequences
    assert summary(short) == f"a prompt of {len(sequence)} tokens, to be answered"
    assert sequence.ids.tolist() == renderer.prompt(rows[0].messages) and sequence.row is rows[0]
    assert not sequence.weights.any() and short.rendered == len(sequence)
    assert (long.dropped, empty.dropped) == (TOO_LONG, EMPTY_PROMPT) and not long.sequences
