"""Rows that compare answers: every format, what is dropped and why, and that both answers have one prompt."""

import json

import numpy as np
import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.data.preferences import detect_for
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer
from posttrain.data.transcripts import join_turns, read_transcript


def read(raw, objective="dpo", columns=None, ranked="all"):
    return detect_for(objective, list(raw), [raw], columns, ranked).to_row(raw, "f.jsonl:7", 3)


def said(messages):
    return [(m["role"][0], m["content"]) for m in messages]


def user(text):
    return {"role": "user", "content": text}


def bot(text):
    return {"role": "assistant", "content": text}


ASKED = [("u", "Hi?")]
PAIRS = {
    "strings": {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
    "alpaca": {"instruction": "Hi?", "input": "", "chosen": "Yes.", "rejected": "No."},
    "prompt as messages": {"prompt": [user("Hi?")], "chosen": [bot("Yes.")], "rejected": [bot("No.")]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi?"}], "chosen": {"from": "gpt", "value": "Yes."},
                 "rejected": {"from": "gpt", "value": "No."}},
    "whole conversations": {"chosen": [user("Hi?"), bot("Yes.")], "rejected": [user("Hi?"), bot("No.")]},
    "with the prompt beside": {"prompt": "Hi?", "chosen": [user("Hi?"), bot("Yes.")],
                               "rejected": [user("Hi?"), bot("No.")]},
    "content parts": {"chosen_messages": [user([{"type": "text", "value": "Hi?"}]), bot("Yes.")],
                      "rejected_messages": [user([{"type": "text", "value": "Hi?"}]), bot("No.")]},
    "transcripts": {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
    "a prompt that is a transcript": {"prompt": "\n\nHuman: Hi?\n\nAssistant:", "chosen": " Yes.", "rejected": " No."},
    "as JSON text": {"prompt": "Hi?", "chosen": json.dumps([bot("Yes.")]), "rejected": json.dumps([bot("No.")])},
    "ranked": {"prompt": "Hi?", "answers": ["Yes.", "No."]},
    "ranked by scores": {"prompt": "Hi?", "responses": ["No.", "Yes."], "scores": [1, 2.5]},
    "alpaca ranked": {"instruction": "Hi?", "input": "", "output": ["Yes.", "No."], "history": []},
    "vote a": {"prompt": "Hi?", "a": "Yes.", "b": "No.", "verdict": "a"},
    "vote b": {"prompt": "Hi?", "a": "No.", "b": "Yes.", "verdict": "B"},
    "arena": {"prompt": "Hi?", "response_a": "Yes.", "response_b": "No.", "winner": "model_a"},
    "arena's conversations": {"conversation_a": [user("Hi?"), bot("No.")], "winner": "model_b",
                              "conversation_b": [user("Hi?"), bot("Yes.")]},
    "a prompt and whole transcripts": {"prompt": "\n\nHuman: Hi?\n\nAssistant:",
                                       "chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.",
                                       "rejected": "\n\nHuman: Hi?\n\nAssistant: No."},
    "a transcript that nobody answers": {"prompt": "Human: Hi?", "chosen": "Yes.", "rejected": "No."},
    "a transcript and messages": {"prompt": "Human: Hi?\n\nAssistant:", "chosen": [bot("Yes.")],
                                  "rejected": [bot("No.")]},
    "ultrafeedback": {"prompt": "Hi?", "messages": [user("Hi?"), bot("Yes.")], "chosen": [user("Hi?"), bot("Yes.")],
                      "rejected": [user("Hi?"), bot("No.")]},
}


@pytest.mark.parametrize("raw", PAIRS.values(), ids=PAIRS)
def test_every_form_of_a_pair_is_the_same_row(raw):
    row = read(raw)
    assert row.kind == "pair" and row.dropped is None and (row.origin, row.source) == ("f.jsonl:7", 3)
    assert said(row.messages) == ASKED
    assert [said(a) for a in row.answers] == [[("a", "Yes.")], [("a", "No.")]]
    assert row.facts[0]["rank"] > row.facts[1]["rank"] and row.facts[0]["margin"] == 0


def test_what_stands_around_the_answers():
    row = read({"system": "Be kind.", "instruction": "And you?", "history": [["Hi?", "Yes."]], "chosen": "Me too.",
                "rejected": "No.", "margin": 1.5}, "reward")
    assert said(row.messages) == [("s", "Be kind."), ("u", "Hi?"), ("a", "Yes."), ("u", "And you?")]
    assert row.messages[2]["weight"] == 0 and row.facts == [{"rank": 1.0, "margin": 1.5}, {"rank": 0.0, "margin": 0.0}]
    assert read({"q": "Hi?", "good": "A", "bad": "B"}, columns={"prompt": "q", "chosen": "good", "rejected": "bad"})
    talk = [user("Hi?"), bot("Yes."), user("And?")]
    row = read({"chosen": [*talk, bot("A")], "rejected": [*talk, bot("B")]})
    assert len(row.messages) == 3 and row.messages[1]["weight"] == 0
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}
    row = read({"messages": [user("Hi?")], "chosen": [call, {"role": "tool", "content": "1"}, bot("1.")],
                "rejected": [bot("2.")]})
    assert [len(a) for a in row.answers] == [3, 1]


def test_rankings_compare_every_two_or_the_ends():
    raw = {"prompt": "Hi?", "answers": ["b", "d", "a", "c"], "scores": [3, 1, 4, 1]}
    assert [a[0]["content"] for a in read(raw).answers] == ["a", "b", "d", "c"]
    assert [f["rank"] for f in read(raw).facts] == [4, 3, 1, 1]
    assert [a[0]["content"] for a in read(raw, ranked="best_worst").answers] == ["a", "c"] or read(
        raw, ranked="best_worst").answers[1][0]["content"] in "cd"
    assert read({**raw, "scores": [1, 1, 1, 1]}).dropped == "no answer is better"


def test_what_compares_nothing_is_a_counted_drop():
    assert read({"prompt": "Hi?", "a": "A", "b": "B", "verdict": "tie"}).dropped == "no answer is better"
    other = {"chosen": [user("Hi?"), bot("A")], "rejected": [user("Ho?"), bot("B")]}
    assert read(other).dropped == "contexts differ"
    earlier = {"chosen": [user("Hi?"), bot("1"), user("x"), bot("A")], "rejected": [user("Hi?"), bot("2"), user("x"),
                                                                                  bot("A")]}
    assert read(earlier).dropped == "contexts differ"
    twice = {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", "rejected": "\n\nHuman: a\n\nAssistant: b"}
    assert read(twice).dropped == "contexts differ"


@pytest.mark.parametrize("texts", [
    ('{"a": 1}', '{"a": 2}'), ('{"a": 1} is it', "[{"), ('[{"a": 1}]', "[]"), ("[1, 2]", '["role"]'), ("{x", "[x")])
def test_an_answer_in_json_is_text(texts):
    for row in (read({"prompt": "Give json", "chosen": texts[0], "rejected": texts[1]}),
                read({"prompt": "Give json", "a": texts[0], "b": texts[1], "winner": "a"})):
        assert [said(a) for a in row.answers] == [[("a", texts[0])], [("a", texts[1])]]
    row = read({"prompt": "Hi?", "chosen": json.dumps(bot("Yes.")), "rejected": '{"from": "gpt", "value": "x"}'})
    assert [said(a) for a in row.answers] == [[("a", "Yes.")], [("a", "x")]]


TALK = {"chosen": [user("Hi?"), bot("Yes.")], "rejected": [user("Hi?"), bot("No.")]}
SCRIPT = {"chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: Hi?\n\nAssistant: No."}
EARLIER = [("u", "one"), ("a", "two")]
LONG = {side: [user("one"), bot("two"), *talk] for side, talk in TALK.items()}


@pytest.mark.parametrize(("raw", "messages"), [
    ({**SCRIPT, "system": "Be kind."}, [("s", "Be kind."), *ASKED]),
    ({**TALK, "system": "Be kind."}, [("s", "Be kind."), *ASKED]),
    ({**SCRIPT, "history": [["one", "two"]]}, [*EARLIER, *ASKED]),
    ({**TALK, "history": [["one", "two"]], "system": "s"}, [("s", "s"), *EARLIER, *ASKED]),
    ({**TALK, "history": [["one", "two"]], "prompt": "Hi?"}, [*EARLIER, *ASKED]),
    ({**SCRIPT, "history": [["one", "two"]], "prompt": "Human: Hi?\n\nAssistant:"}, [*EARLIER, *ASKED]),
    ({**SCRIPT, "prompt": "Human: one\n\nAssistant: two"}, [*EARLIER, *ASKED]),
    ({**SCRIPT, "prompt": " Hi?\n"}, ASKED),
    ({**LONG, "history": [["one", "two"]]}, [*EARLIER, *ASKED]),
    ({**LONG, "prompt": "Hi?"}, [*EARLIER, *ASKED]),
    ({**LONG, "prompt": "one"}, [*EARLIER, *ASKED]),
    ({**LONG, "prompt": ""}, [*EARLIER, *ASKED]),
    ({**SCRIPT, "prompt": None}, ASKED),
    ({**TALK, "messages": [user("one"), bot("two"), user("Hi?")]}, [*EARLIER, *ASKED]),
    ({**TALK, "prompt": [{"role": "system", "content": "s"}, user("Hi?")]}, [("s", "s"), *ASKED]),
    ({side: [{"role": "system", "content": "s"}, *talk] for side, talk in TALK.items()} | {"prompt": "Hi?"},
     [("s", "s"), *ASKED]),
    ({side: [{"role": "system", "content": "s"}, *talk] for side, talk in TALK.items()} | {"history": [["one", "two"]]},
     [("s", "s"), *EARLIER, *ASKED])])
def test_columns_beside_whole_conversations_stand_once_before_the_answers(raw, messages):
    row = read(raw)
    assert row.dropped is None and said(row.messages) == messages
    assert [said(a) for a in row.answers] == [[("a", "Yes.")], [("a", "No.")]]
    assert not any(m.get("weight", 0) for m in row.messages)


@pytest.mark.parametrize("raw", [
    {**TALK, "prompt": "Ho?"}, {**SCRIPT, "prompt": "Ho?"}, {**SCRIPT, "prompt": "\n\nHuman: Ho?\n\nAssistant:"},
    {**TALK, "messages": [user("Hi?"), bot("Perhaps.")]}, {**TALK, "history": [["one", "two"]], "prompt": "Ho?"},
    {"prompt": "Ho?", "conversation_a": TALK["chosen"], "conversation_b": TALK["rejected"], "winner": "tie"}])
def test_a_prompt_that_contradicts_whole_conversations(raw):
    assert read(raw).dropped == "contexts differ"


def test_columns_that_are_not_read_are_named():
    def unused(objective, raw, **columns):
        return detect_for(objective, list(raw), [raw], columns).unused

    pair = {"prompt": "Hi?", "chosen": "A", "rejected": "B", "margin": 2}
    assert unused("reward", pair) == () and unused("dpo", pair) == unused("orpo", pair) == ("margin",)
    assert read(pair).facts[0]["margin"] == 0 and read(pair, "reward").facts[0]["margin"] == 2
    with pytest.raises(UserError, match="`margin` is no part that a column can play"):
        detect_for("dpo", list(pair), [pair], {"margin": "margin"})
    both = {**pair, "messages": [user("Hi?")], "history": []}
    assert unused("reward", both) == ("prompt", "history")
    assert unused("reward", both, prompt="prompt") == ("messages",)
    assert unused("dpo", {**SCRIPT, "system": "s", "history": [], "tools": [], "input": "", "x": 1}) == ("input", "x")
    named = detect_for("dpo", ["q", "good", "bad"], [], {"prompt": "q", "chosen": "good", "rejected": "bad"})
    assert str(named) == "preference pairs (chosen=good, rejected=bad, prompt=q)"


@pytest.mark.parametrize(("word", "dropped"), [
    ("model_a", None), ("Model_B", None), *((t, "no answer is better") for t in ("tie", "tie (bothbad)", "both_bad"))])
def test_verdicts_of_chatbot_arena(word, dropped):
    row = read({"prompt": "Hi?", "model_a": "x", "model_b": "y", "response_a": "A", "response_b": "B", "winner": word})
    assert row.dropped == dropped
    assert row.answers[0][0]["content"] == ("B" if word == "Model_B" else "A")


WRONG = {
    "no prompt": ({"chosen": "A", "rejected": "B"}, "the row has no prompt"),
    "an answer that is a number": ({"prompt": "a", "chosen": 1, "rejected": "B"}, "column `chosen` is not text"),
    "a missing answer": ({"prompt": "a", "chosen": "A"}, "the row has no column `rejected`"),
    "a margin in words": ({"prompt": "a", "chosen": "A", "rejected": "B", "margin": "much"}, "the margin is no number"),
    "one ranked answer": ({"prompt": "a", "answers": ["A"]}, "the answers are no list of two or more"),
    "scores that do not fit": ({"prompt": "a", "answers": ["A", "B"], "scores": [1]}, "the scores do not fit"),
    "another verdict": ({"prompt": "a", "a": "A", "b": "B", "verdict": "c"}, "the verdict names no answer"),
    "roles out of order": ({"prompt": [bot("x")], "chosen": "A", "rejected": "B"}, "the roles are out of order"),
}


@pytest.mark.parametrize(("raw", "message"), WRONG.values(), ids=WRONG)
def test_a_malformed_row_says_what_is_wrong(raw, message):
    like = {**raw, "rejected": "B"} if message.endswith("`rejected`") else raw
    with pytest.raises(RowError, match=message) as e:
        detect_for("reward", list(like), [like]).to_row(raw, "f.jsonl:7")
    assert e.value.where == "f.jsonl:7" and e.value.expected


def test_rows_of_another_kind_are_refused():
    with pytest.raises(UserError, match="no known format has these columns") as e:
        detect_for("dpo", ["chosen_one", "rejected_one"], [])
    assert "preference pairs: chosen" in e.value.expected and "--columns chosen=chosen_one" in e.value.fix
    for raw in ({"instruction": "a", "output": "b"}, {"messages": [user("a"), bot("b")]}, {"text": "a"}):
        with pytest.raises(UserError, match="these rows hold one answer each, and `posttrain reward`") as e:
            detect_for("reward", list(raw), [raw])
        assert e.value.fix.startswith("learn from them with posttrain sft")
    with pytest.raises(UserError, match="`answer` is no part"):
        detect_for("reward", ["a"], [], {"answer": "a"})


def test_labels():
    asked = {"prompt": "Hi?", "completion": "Yes."}
    for raw, label in (({**asked, "label": True}, 1), ({**asked, "label": False}, 0), (
            {"messages": [user("Hi?"), bot("Yes.")], "label": True}, 1), ({**asked, "label": 0}, 0)):
        row = read(raw, "kto")
        assert row.kind == "label" and said(row.messages) == ASKED and row.facts == [{"label": label}]
        assert [said(a) for a in row.answers] == [[("a", "Yes.")]]
    row = read(PAIRS["transcripts"], "kto")
    assert row.kind == "label" and row.facts == [{"label": 1.0}, {"label": 0.0}] and len(row.answers) == 2
    for raw, message in (({**asked, "label": "good"}, "the label is neither true nor false"),
                         ({"messages": [user("Hi?")], "label": True}, "no assistant turn at its end")):
        with pytest.raises(RowError, match=message):
            read(raw, "kto")
    with pytest.raises(UserError, match="these rows hold one answer each, and `posttrain kto`") as e:
        read({"prompt": "a", "completion": "b"}, "kto")
    assert "prompt, completion, label" in e.value.expected


def test_transcripts():
    text = "\n\nHuman: a\n\nHuman: b\n\nAssistant:  c: \n\nd \n\nHuman: e\n\nAssistant:"
    assert said(read_transcript(text)) == [("u", "a"), ("u", "b"), ("a", "c: \n\nd"), ("u", "e"), ("a", "")]
    assert said(join_turns(read_transcript(text)))[:2] == [("u", "a\n\nb"), ("a", "c: \n\nd")]


@pytest.fixture(scope="module")
def renderer(tiny_model):
    return Renderer(load_tokenizer(str(tiny_model)), max_length=64)


def test_the_prompt_is_rendered_once(renderer):
    (made,) = renderer.render([read(PAIRS["strings"])])
    one, two = made.sequences
    start = int(np.flatnonzero(one.weights)[0])
    assert made.together and made.rendered == len(one) + len(two)
    assert start == int(np.flatnonzero(two.weights)[0]) and (one.ids[:start] == two.ids[:start]).all()
    assert one.ids[:start].tolist() == renderer.prompt([user("Hi?")])
    assert one.facts == {"rank": 1.0, "margin": 0.0} and two.facts["rank"] == 0
    for sequence, text in ((one, "Yes."), (two, "No.")):
        trained = sequence.ids[sequence.weights > 0]
        assert renderer.spec.decode(trained[:-1]).strip() == text and trained[-1] in renderer.stop_ids


def test_rendered_answers_are_compared_as_tokens(renderer):
    def drop(*answers):
        return renderer.render([read({"prompt": "Hi?", "answers": list(answers)})])[0]

    assert drop("A", "A").dropped == "equal answers" and drop("A", " ").dropped == "empty answer"
    assert drop("A", "b" * 99).dropped == "first exchange longer than max_length"
    made = drop("A", "B", "A")
    assert len(made.sequences) == 2 and made.notes == ("an answer that stands twice among those of a row: taken once",)
    assert made.rendered == sum(map(len, made.sequences))
    assert renderer.render([read(PAIRS["vote a"] | {"verdict": "tie"})])[0].rendered == 0


def test_real_transcripts_balance(shared_data, tiny_model, real_ledger):
    ledger = real_ledger(shared_data / "hh_rlhf" / "test.jsonl.gz")
    assert ledger["rows"]["read"] == 2312
    assert ledger["rows"]["dropped"] == {"contexts differ": 5, "empty answer": 4}
    assert ledger["rows"]["trained"] == 2303
    tokens = ledger["tokens"]
    assert tokens["rendered"] == tokens["trained"] + tokens["masked"] + tokens["dropped"] and tokens["cut"] == 0
    asked = real_ledger(shared_data / "hh_rlhf" / "test.jsonl.gz", "ppo")
    assert asked["rows"] == {"read": 2312, "trained": 2307, "cut": 0, "dropped": {"contexts differ": 5}}


@pytest.mark.parametrize(("name", "rows", "dropped"), [
    ("llamafactory_demo/dpo_en_demo.json", 300, {}), ("llamafactory_demo/dpo_zh_demo.json", 300, {}),
    ("llamafactory_demo/v1_dpo_demo.jsonl", 10, {}), ("lima_oasst_zh/oaast_rm_zh.json", 775, {"equal answers": 3})])
def test_real_pairs_balance(shared_data, real_ledger, name, rows, dropped):
    ledger = real_ledger(shared_data / name)
    assert ledger["rows"]["read"] == rows and ledger["rows"]["dropped"] == dropped
    assert ledger["rows"]["trained"] == rows - sum(dropped.values())
    asked = real_ledger(shared_data / name, "online_dpo")
    assert asked["rows"] == {"read": rows, "trained": rows, "cut": 0, "dropped": {}}


def test_real_labels_balance(shared_data, real_ledger):
    labels = real_ledger(shared_data / "llamafactory_demo" / "kto_en_demo.json", "kto")
    assert labels["rows"] == {"read": 300, "trained": 300, "cut": 0, "dropped": {}}
    asked = real_ledger(shared_data / "llamafactory_demo" / "kto_en_demo.json", "ppo")
    assert asked["rows"] == labels["rows"] and asked["tokens"]["trained"] == 0
    pairs = real_ledger(shared_data / "llamafactory_demo" / "dpo_en_demo.json", "kto")
    assert pairs["rows"]["trained"] == 300


@pytest.fixture
def real_ledger(builtin_spec):
    """The ledger of every row of a file, as a run would keep it."""
    from posttrain.data.batch import Outcome, settle
    from posttrain.data.read import open_source

    def count(path, objective="dpo"):
        source = open_source(str(path), objective=objective)
        made = Renderer(builtin_spec, max_length=1 << 20).render([source.row(i) for i in range(len(source))])
        _, ledger = settle([Outcome.of(source.origin(i), m) for i, m in enumerate(made)])
        return ledger.to_json()
    return count


@pytest.fixture(scope="module")
def builtin_spec():
    from posttrain.builtin import builtin_model_path

    return load_tokenizer(str(builtin_model_path()))
