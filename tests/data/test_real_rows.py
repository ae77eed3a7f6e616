"""Every real set beside the checkout: its format, its rows, its lines, and what is wrong with it."""

import gzip
import json

import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.data.read import open_source

SETS = [
    # file, format, rows, lines of the first two rows, line of the last row, turns in all
    ("stanford_alpaca/alpaca_data.json.gz", "alpaca", 52002, (2, 7), 260007, 104004),
    ("gsm8k/train.jsonl", "question/answer", 7473, (1, 2), 7473, 14946),
    ("gsm8k/test.jsonl", "question/answer", 1319, (1, 2), 1319, 2638),
    ("belle/dev1K.json", "alpaca", 1000, (1, 2), 1000, 2000),
    ("lima_oasst_zh/lima.json", "alpaca", 1029, (2, 8), 6402, 2164),
    ("lima_oasst_zh/oaast_sft_zh.json", "alpaca", 689, (2, 8), 6311, 2276),
    ("llamafactory_demo/alpaca_en_demo.json", "alpaca", 999, (2, 7), 4992, 1998),
    ("llamafactory_demo/alpaca_zh_demo.json", "alpaca", 1000, (2, 7), 4997, 2000),
    ("llamafactory_demo/identity.json", "alpaca", 91, (2, 7), 452, 182),
    ("llamafactory_demo/glaive_toolcall_en_demo.json", "sharegpt", 300, (2, 39), 9137, 1914),
    ("llamafactory_demo/reason_tool_use_demo_50.jsonl", "messages", 50, (1, 2), 50, 274),
    ("llamafactory_demo/v1_sft_demo.jsonl", "messages", 500, (1, 2), 500, 1000),
    ("fastchat/dummy_conversation.json", "sharegpt", 500, (2, 23), 10489, 2000),
    ("llamafactory_demo/c4_demo.jsonl", "text", 300, (1, 2), 300, 0),
    ("llamafactory_demo/wiki_demo.txt", "text", 30, (1, 2), 30, 0),
    ("mmlu/test/world_religions_test.csv", "question/answer", 171, (2, 3), 172, 342),
]


@pytest.mark.parametrize(("file", "name", "rows", "first", "last", "turns"), SETS, ids=[s[0] for s in SETS])
def test_every_row_is_read(shared_data, file, name, rows, first, last, turns):
    path = str(shared_data / file)
    source = open_source(path)
    assert (source.format.name, len(source)) == (name, rows)
    made = [source.row(i) for i in range(len(source))]
    assert [made[i].origin for i in (0, 1, -1)] == [f"{path}:{n}" for n in (*first, last)]
    assert sum(len(r.messages) for r in made) == turns
    assert source.find(str(last)) == rows - 1


def test_the_alpaca_file_row_by_row(shared_data):
    path = shared_data / "stanford_alpaca" / "alpaca_data.json.gz"
    source = open_source(str(path))
    with gzip.open(path, "rt", encoding="utf-8") as f:
        rows = json.load(f)
    assert all(source[i].values == row for i, row in enumerate(rows))
    empty = [i for i in range(len(source)) if not source.row(i).messages[-1]["content"].strip()]
    assert len(empty) == 28


def test_a_tool_result_without_a_call_is_out_of_order(shared_data):
    path = str(shared_data / "llamafactory_demo" / "glaive_toolcall_zh_demo.json")
    source, errors = open_source(path), []
    for i in range(len(source)):
        try:
            source.row(i)
        except RowError as e:
            errors.append((i, e.message, e.where, e.found))
    assert errors == [
        (197, "the roles are out of order", f"{path}:5819", "message 3 is tool after assistant"),
        (293, "the roles are out of order", f"{path}:8763", "message 3 is tool after assistant")]


def test_tool_calls_and_reasoning_are_kept(shared_data):
    source = open_source(str(shared_data / "llamafactory_demo" / "reason_tool_use_demo_50.jsonl"))
    rows = [source.row(i) for i in range(len(source))]
    calls = [c for r in rows for m in r.messages for c in m.get("tool_calls", [])]
    assert len(calls) == 41 + 2 * 9 + 3 * 3 and all(isinstance(c["function"]["arguments"], dict) for c in calls)
    assert sum("reasoning_content" in m for r in rows for m in r.messages) == 112
    assert all(t["type"] == "function" and t["function"]["name"] for r in rows for t in r.tools or [])


def test_the_malformed_file_is_blamed_on_its_line(shared_data):
    path = str(shared_data / "alpaca_zh_hikariming" / "malformed_zh_9407-12345.json.gz")
    with pytest.raises(UserError) as e:
        open_source(path)
    assert (e.value.where, e.value.found) == (f"{path}:14006", "a comma after the last row")


@pytest.mark.parametrize(("file", "message"), [
    ("hh_rlhf/test.jsonl.gz", "these rows are preference pairs"),
    ("llamafactory_demo/dpo_zh_demo.json", "these rows are preference pairs"),
    ("llamafactory_demo/v1_dpo_demo.jsonl", "these rows are preference pairs"),
    ("llamafactory_demo/kto_en_demo.json", "these rows are labelled good or bad"),
    ("stanford_alpaca/seed_tasks.jsonl", "no known format has these columns"),
    ("truthfulqa/TruthfulQA.csv", "no known format has these columns"),
    ("oasst/en_100_tree.jsonl", "no known format has these columns"),
])
def test_sets_of_another_kind_are_refused(shared_data, file, message):
    with pytest.raises(UserError, match=message) as e:
        open_source(str(shared_data / file)).format  # noqa: B018 - detection is what fails
    assert e.value.where == str(shared_data / file) and e.value.fix


def test_named_columns_on_a_real_csv(shared_data):
    source = open_source(str(shared_data / "truthfulqa" / "TruthfulQA.csv"),
                         columns={"prompt": "Question", "response": "Best Answer"})
    assert len(source) == 817 and source.row(0).messages == [
        {"role": "user", "content": "What happens to you if you eat watermelon seeds?"},
        {"role": "assistant", "content": "The watermelon seeds pass through your digestive system"}]
