"""Rows as prompts: what is asked, what is kept for the reward, and what is no prompt at all."""

import json

import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Row
from posttrain.data.prompts import EMPTY_PROMPT, PromptRenderer, detect_prompts
from posttrain.data.read import open_source
from posttrain.data.weigh import TOO_LONG

USER, ANSWER = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so."}


def read(row: dict, **overrides) -> Row:
    return detect_prompts(list(row), [row], overrides).to_row(row, "f:1")


@pytest.mark.parametrize(("row", "answer"), [
    ({"instruction": "why?", "input": "", "output": "so."}, "so."),
    ({"prompt": "why?", "completion": "so."}, "so."),
    ({"question": "why?", "answer": "so."}, "so."),
    ({"prompt": "why?"}, None),
    ({"prompt": "why?", "chosen": "a", "rejected": "b"}, None),
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
    from posttrain.data.tokenizer import load_tokenizer

    renderer = PromptRenderer(load_tokenizer(str(tiny_model)), max_length=12)
    rows = [Row("prompt", f"f:{i}", messages=[{"role": "user", "content": text}])
            for i, text in enumerate(["red", "red green blue one two three cat dog", "  "])]
    short, long, empty = renderer.render(rows)
    sequence, = short.sequences
    assert sequence.ids.tolist() == renderer.prompt(rows[0].messages) and sequence.row is rows[0]
    assert not sequence.weights.any() and short.rendered == len(sequence)
    assert (long.dropped, empty.dropped) == (TOO_LONG, EMPTY_PROMPT) and not long.sequences
