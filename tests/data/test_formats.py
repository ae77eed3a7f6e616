"""Columns become parts, records become messages, and every fault is a RowError at its origin."""

import json

import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.data.formats import KNOWN, detect

U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def row(raw, **columns):
    return detect(list(raw), [raw], columns).to_row(raw, "f.jsonl:7", 3)


def messages(raw, **columns):
    made = row(raw, **columns)
    assert (made.kind, made.origin, made.source) == ("conversation", "f.jsonl:7", 3)
    return made.messages


def fault(raw, like=None, **columns) -> RowError:
    fmt = detect(list(like or raw), [like or raw], columns)
    with pytest.raises(RowError) as e:
        fmt.to_row(raw, "f.jsonl:7")
    assert e.value.where == "f.jsonl:7"
    return e.value


@pytest.mark.parametrize(("raw", "name", "expected"), [
    ({"instruction": "q", "output": "a"}, "alpaca", [U, A]),
    ({"instruction": "q", "input": "", "output": "a"}, "alpaca", [U, A]),
    ({"instruction": "q", "input": None, "response": "a", "system": ""}, "alpaca", [U, A]),
    ({"instruction": "q", "input": " more\n", "output": "a"}, "alpaca", [{**U, "content": "q\n more\n"}, A]),
    ({"instruction": "", "input": "more", "output": "a"}, "alpaca", [{**U, "content": "more"}, A]),
    ({"instruction": "q", "context": "c", "response": "a"}, "alpaca", [{**U, "content": "q\nc"}, A]),
    ({"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["q1", "a1"], ["q2", ""]]}, "alpaca",
     [{"role": "system", "content": "s"}, {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"},
      {"role": "user", "content": "q2"}, {"role": "assistant", "content": ""}, U, A]),
    ({"instruction": "q", "output": "a", "history": '[["q", "a"]]'}, "alpaca", [U, A, U, A]),
    ({"instruction": "q", "output": "a", "history": ""}, "alpaca", [U, A]),
    ({"prompt": "q", "completion": "a"}, "prompt/completion", [U, A]),
    ({"query": "q", "response": "a", "type": "x"}, "prompt/completion", [U, A]),
    ({"prompt": [U], "completion": [A]}, "prompt/completion", [U, A]),
    ({"prompt": [U, A, U], "completion": [A, U, A]}, "prompt/completion", [U, {**A, "weight": 0}, U, A, U, A]),
    ({"prompt": [U, {**A, "weight": 1}, U], "completion": "a"}, "prompt/completion", [U, {**A, "weight": 1}, U, A]),
    ({"question": "q", "answer": "a"}, "question/answer", [U, A]),
    ({"system_prompt": "s", "question": "q", "response": "a"}, "question/answer",
     [{"role": "system", "content": "s"}, U, A]),
    ({"instruction": "q", "output": ""}, "alpaca", [U, {**A, "content": ""}]),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "id": 1}, "sharegpt", [U, A]),
    ({"conversations": [{"from": "System", "value": ""}, {"from": "prompter", "value": "q"},
                        {"from": "ChatGPT", "value": "a"}]}, "sharegpt", [{"role": "system", "content": ""}, U, A]),
    ({"conversations": [{"from": "user", "value": "q"}, {"from": "bot", "value": "a"}, {"from": "human", "value": "q"}],
      "system": "s"}, "sharegpt", [{"role": "system", "content": "s"}, U, A, U]),
    ({"messages": [U, A], "prompt": "q", "prompt_id": "x"}, "messages", [U, A]),
    ({"messages": json.dumps([U, A])}, "messages", [U, A]),
    ({"messages": [{**U, "content": [{"type": "text", "text": "q"}]}, {**A, "content": ["a", {"type": "text",
      "text": "b"}]}]}, "messages", [U, {**A, "content": "ab"}]),
    ({"messages": [{**U, "loss_weight": 0.0}, {**A, "loss_weight": 1.0}, {**U, "weight": None},
                   {**A, "weight": 0}, U, {**A, "train": False}]}, "messages",
     [U, {**A, "weight": 1}, U, {**A, "weight": 0}, U, {**A, "weight": 0}]),
    ({"messages": [{"role": "developer", "content": "s"}, U, {**A, "reasoning_content": "r"}]}, "messages",
     [{"role": "system", "content": "s"}, U, {**A, "reasoning_content": "r"}]),
    ({"messages": [U, {**A, "content": [{"type": "reasoning", "value": "r"}, {"type": "text", "value": "a"}]}]},
     "messages", [U, {**A, "reasoning_content": "r"}]),
    ({"messages": [U, {**A, "thinking": "r", "reasoning_content": None}]}, "messages",
     [U, {**A, "reasoning_content": "r"}]),
])
def test_formats(raw, name, expected):
    assert detect(list(raw), [raw]).name == name
    assert messages(raw) == expected


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RESULT = {"role": "tool", "content": "2"}


@pytest.mark.parametrize("calls", [
    [{"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}],
    [{"from": "tool_call", "value": [{"name": "add", "arguments": '{"a": 1}'}]}],
    [{"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 1}'}}]}],
    [{"role": "assistant", "tool_calls": json.dumps([CALL])}],
    [{"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"a": 1}'}}],
    [{"role": "assistant", "content": [{"type": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}]}],
])
@pytest.mark.parametrize("result", [{"from": "observation", "value": "2"}, RESULT, {**RESULT, "role": "function"}])
def test_tool_calls_of_every_dialect(calls, result):
    raw = {"messages": [U, *calls, result, A], "tools": '[{"name": "add", "parameters": {}}]'}
    assert messages(raw) == [U, {"role": "assistant", "content": "", "tool_calls": [CALL]}, RESULT, A]
    assert row(raw).tools == [{"type": "function", "function": {"name": "add", "parameters": {}}}]


def test_calls_beside_their_text_and_calls_in_parallel_are_one_turn():
    call = {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    raw = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "wait"}, call, call,
                             {"from": "observation", "value": "2"}, {"from": "observation", "value": "3"},
                             {"from": "gpt", "value": "a"}]}
    assert messages(raw) == [U, {"role": "assistant", "content": "wait", "tool_calls": [CALL, CALL]}, RESULT,
                             {"role": "tool", "content": "3"}, A]
    ids = {"messages": [U, {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", **CALL}]},
                        {**RESULT, "tool_call_id": "c1", "name": "add"}]}
    assert messages(ids)[1:] == [{"role": "assistant", "content": "", "tool_calls": [{"id": "c1", **CALL}]},
                                 {**RESULT, "tool_call_id": "c1", "name": "add"}]


@pytest.mark.parametrize("tools", [None, "", "[]", [], " "])
def test_no_tools(tools):
    assert row({"messages": [U, A], "tools": tools}).tools is None


def test_a_text_row():
    made = row({"text": " as it\nstands ", "id": 3})
    assert (made.kind, made.text, made.messages, made.origin) == ("text", " as it\nstands ", [], "f.jsonl:7")


def test_named_columns():
    raw = {"q": "q", "a": "a", "note": "n", "sys": "s"}
    assert messages(raw, prompt="q", response="a") == [U, A]
    assert messages(raw, prompt="q", response="a", system="sys", input="note") == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q\nn"}, A]
    assert row(raw, text="note").text == "n"
    fmt = detect(list(raw), [raw], {"prompt": "q", "response": "a"})
    assert (fmt.name, fmt.unused, fmt.kind) == ("prompt/response", ("note", "sys"), "conversation")
    assert str(fmt) == "prompt/response (prompt=q, response=a), not read: note, sys"
    assert messages({"instruction": "q", "output": "no", "good": "a"}, response="good") == [U, A]
    assert messages({"instruction": "q", "output": "a", "sys": "s"}, system="sys")[0]["content"] == "s"
    assert messages({"dialog": [U, A], "text": "t"}, messages="dialog") == [U, A]
    assert str(detect(["instruction", "input", "output"], [])) == "alpaca (prompt=instruction, response=output, input)"


def columns_error(columns, sample=(), **overrides) -> UserError:
    with pytest.raises(UserError) as e:
        detect(columns, list(sample), overrides)
    assert not isinstance(e.value, RowError)
    return e.value


def test_unknown_columns_name_the_nearest_format_and_what_to_write():
    e = columns_error(["instr", "outp", "id"])
    assert str(e) == (
        "error: no known format has these columns\n"
        "  found:    instr, outp, id\n"
        "  expected: the nearest format is alpaca: instruction, output or response; optional input, system, history, "
        "tools\n"
        "  fix:      name the columns: --columns prompt=instr,response=outp (parts: messages, prompt, input, response, "
        "system, history, tools, text)")
    assert "--columns 'prompt=Question,response=Best Answer'" in columns_error(["Question", "Best Answer"]).fix
    assert "nearest format is sharegpt" in columns_error(["conversationz", "id"]).expected
    assert columns_error([f"c{i}" for i in range(40)]).found.endswith("c15, … (40 columns)")
    assert columns_error([]).found == "none"
    assert "nearest format is alpaca" in columns_error(["instruction"]).expected


def test_wrong_names_in_columns():
    e = columns_error(["q", "a"], promt="q")
    assert (e.message, e.where, e.fix) == ("`promt` is no part that a column can play", "columns: promt=q",
                                           "did you mean `prompt`?")
    e = columns_error(["question", "answer"], prompt="questoin")
    assert (e.message, e.found, e.fix) == ("no data has a column `questoin`", "question, answer",
                                           "did you mean `question`?")


def test_preference_rows_are_refused_with_a_way_out():
    for columns, sample, fix in (
        (["chosen", "rejected"], {"chosen": "H: q A: a"},
         "to train on the preferred answers alone: --columns text=chosen"),
        (["prompt", "chosen", "rejected"], {"chosen": "a"},
         "to train on the preferred answers alone: --columns response=chosen,prompt=prompt"),
        (["chosen", "rejected"], {"chosen": [U, A]},
         "to train on the preferred answers alone: --columns messages=chosen"),
        (["conversations", "chosen", "rejected"], {"chosen": {"from": "gpt"}},
         "write the preferred answers to a file of conversations"),
    ):
        e = columns_error(columns, [sample])
        assert e.message == "these rows are preference pairs, which supervised fine-tuning does not read"
        assert e.fix.startswith("learn from both with posttrain dpo or posttrain reward") and e.fix.endswith(fix)
        assert e.found == ", ".join(columns)
    assert messages({"prompt": "q", "chosen": "a", "rejected": "b"}, prompt="prompt", response="chosen") == [U, A]
    e = columns_error(["messages", "label"], [{"label": True}, {"label": False}, {"label": True}])
    assert e.message == "these rows are labelled good or bad, and supervised fine-tuning would train on both"
    assert e.found == "column `label`: 2 true, 1 false in the first 3 rows"
    assert e.fix == "keep the rows whose label is true; or train on all of them: --columns messages=messages"
    assert detect(["messages", "label"], [{"label": "news"}]).unused == ("label",)


@pytest.mark.parametrize(("turns", "found", "expected"), [
    ([U, U, A], "message 2 is user after user", "assistant"),
    ([U, A, A], "message 3 is assistant after assistant", "user"),
    ([A, U, A], "message 1 is assistant at the beginning", "system or user"),
    ([U, A, {"role": "system", "content": "s"}, U, A], "message 3 is system after assistant", "user"),
    ([{"role": "system", "content": "s"}, A], "message 2 is assistant after system", "user"),
    ([U, RESULT, A], "message 2 is tool after user", "assistant"),
    ([U, A, RESULT, A], "message 3 is tool after assistant", "user"),
    ([U, {**A, "tool_calls": [CALL]}, A], "message 3 is assistant after a tool call", "tool"),
    ([U, {**A, "tool_calls": [CALL]}, RESULT, U, A], "message 4 is user after tool", "tool or assistant"),
])
def test_roles_out_of_order(turns, found, expected):
    e = fault({"messages": turns})
    assert (e.message, e.found, e.expected) == ("the roles are out of order", found, expected)
    assert e.fix == "mend the row, or set bad_rows=skip to drop it and count it"


@pytest.mark.parametrize(("raw", "message", "found"), [
    ({"messages": [{**U, "role": "asistant"}]}, "message 1 has an unknown role", '"asistant" (text)'),
    ({"messages": [U, {**A, "role": 3}]}, "message 2 has an unknown role", "3 (a number)"),
    ({"messages": [{"content": "q"}]}, "message 1 has no role", "content"),
    ({"messages": [U]}, "the conversation has no assistant turn", "user"),
    ({"messages": []}, "the conversation has no assistant turn", "no messages"),
    ({"messages": [U, {**A, "content": 42}]}, "the content of message 2 is not text", "42 (a number)"),
    ({"messages": [U, {**A, "content": None}]}, "the content of message 2 is not text", "null"),
    ({"messages": [U, {"role": "assistant"}]}, "the content of message 2 is not text", "null"),
    ({"messages": [{**U, "content": {"a": 1}}, A]}, "the content of message 1 is not text", '{"a": 1} (an object)'),
    ({"messages": [{**U, "content": [{"type": "image_url", "image_url": {}}]}, A]},
     "message 1 holds content that is not text", '"image_url" (text)'),
    ({"messages": [{**U, "content": [{"type": "text", "text": 1}]}, A]}, "the content of message 1 is not text",
     "1 (a number)"),
    ({"messages": None}, "the messages are no list of messages", "null"),
    ({"messages": ["hi"]}, "the messages are no list of messages", '["hi"] (a list)'),
    ({"messages": "{oops"}, "the list of messages is not valid JSON",
     "Expecting property name enclosed in double quotes: line 1 column 2 (char 1): {oops"),
    ({"messages": [U, {**A, "weight": 0.5}]}, "the weight of message 2 is neither 0 nor 1", "0.5 (a number)"),
    ({"messages": [{**U, "weight": 1}, A]}, "message 1 has weight 1, but only assistant turns are trained",
     "role user"),
    ({"messages": [{**U, "reasoning_content": "r"}, A]}, "message 1 is no assistant's, but reasons", "role user"),
    ({"messages": [{**U, "tool_calls": [CALL]}, A]}, "message 1 is no assistant's, but calls tools", "role user"),
    ({"messages": [U, {"role": "function_call", "content": "hm"}]}, "the tool call of message 2 is not valid JSON",
     "Expecting value: line 1 column 1 (char 0): hm"),
    ({"messages": [U, {"role": "function_call", "content": '{"arguments": {}}'}]},
     "the tool call of message 2 names no function", '{"arguments": {}} (an object)'),
    ({"messages": [U, {"role": "function_call", "content": '{"name": "f", "arguments": [1]}'}]},
     "the arguments of the tool call of message 2 are no object", "[1] (a list)"),
    ({"messages": [U, A], "tools": "[1]"}, "the tools are no list of JSON schemas", "[1] (a list)"),
    ({"messages": [U, A], "tools": "search"}, "the list of tools is not valid JSON",
     "Expecting value: line 1 column 1 (char 0): search"),
    ({"messages": [{"role": "system", "content": "s"}, U, A], "system": "t"}, "the row has two system prompts",
     "column `system` and a system message"),
    ({"messages": [U, A], "system": 5}, "column `system` is not text", "5 (a number)"),
    ({"instruction": "q", "output": 42}, "column `output` is not text", "42 (a number)"),
    ({"instruction": "q", "output": None}, "column `output` is not text", "null"),
    ({"instruction": "q", "output": True}, "column `output` is not text", "true (a boolean)"),
    ({"instruction": "q", "output": ["a", "b"]}, "column `output` is not text", '["a", "b"] (a list)'),
    ({"instruction": 1, "output": "a"}, "column `instruction` is not text", "1 (a number)"),
    ({"instruction": "q", "input": 1.5, "output": "a"}, "column `input` is not text", "1.5 (a number)"),
    ({"instruction": "q", "output": "a", "history": {"a": 1}}, "column `history` is no list of turns",
     '{"a": 1} (an object)'),
    ({"instruction": "q", "output": "a", "history": [["q"]]}, "turn 1 of column `history` is no pair",
     '["q"] (a list)'),
    ({"instruction": "q", "output": "a", "history": [["q", 1]]}, "turn 1 of column `history` is not text",
     "1 (a number)"),
    ({"text": 3}, "column `text` is not text", "3 (a number)"),
])
def test_rows_that_cannot_be_read(raw, message, found):
    e = fault(raw)
    assert (e.message, e.found) == (message, found)


def test_the_nearest_role_is_named():
    e = fault({"messages": [{**U, "role": "asistant"}, A]})
    assert e.fix == "did you mean `assistant`? mend the row, or set bad_rows=skip to drop it and count it"
    assert e.expected.startswith("system, developer, user, human, prompter, assistant, gpt, bot")


def test_a_row_without_a_column_of_the_others():
    e = fault({"instruction": "q", "answer": "a"}, like={"instruction": "q", "output": "a"})
    assert (e.message, e.found, e.expected) == ("the row has no column `output`", "instruction, answer",
                                                "`output`, as in the other rows of this alpaca data")
    assert fault({}, like={"text": "t"}).found == "no columns"


def test_every_format_says_what_it_needs():
    assert [str(s) for s in KNOWN] == [
        "messages: messages; optional system, tools",
        "sharegpt: conversations or conversation; optional system, tools",
        "alpaca: instruction, output or response; optional input, system, history, tools",
        "prompt/completion: prompt or query, completion or response or answer; optional system, history, tools",
        "question/answer: question, answer or response; optional system, history, tools",
        "text: text"]
