"""Rows that compare answers, looked at by the data verbs and asked as questions."""

from __future__ import annotations

import json

import pytest

from posttrain.app.cli import main
from posttrain.app.compare import read_prompts

ROWS = [{"prompt": f"say {w}", "chosen": f"{w} please.", "rejected": w} for w in ("red", "green", "blue")]


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in [*ROWS, {**ROWS[0], "rejected": ROWS[0]["chosen"]}]))
    return path


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_show_writes_both_answers_with_one_prompt(pairs, tiny_model, capsys):
    code, out, _ = run(capsys, "data", "show", pairs, "--objective", "dpo", "--model", tiny_model, "--json",
                       "--limit", 2)
    lines = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and len(lines) == 4
    for better, worse in zip(lines[::2], lines[1::2], strict=True):
        assert better["origin"] == worse["origin"]
        heads = [[t["id"] for t in line["tokens"] if not t["weight"]] for line in (better, worse)]
        assert heads[0] == heads[1] and better["tokens"][-1]["reason"] == "stop"
    assert "".join(t["text"] for t in lines[0]["tokens"] if t["reason"] == "content").strip() == "red please."


def test_check_counts_what_compares_nothing(pairs, tiny_model, capsys):
    code, out, _ = run(capsys, "data", "check", pairs, "--objective", "reward", "--model", tiny_model, "--json",
                       "--max_lost", 0.5)
    found = json.loads(out)
    assert code == 1 and found["ledger"]["rows"] == {"read": 4, "trained": 3, "cut": 0, "dropped": {"equal answers": 1}}
    assert [f["kind"] for f in found["findings"]] == ["equal answers"]
    code, _, err = run(capsys, "data", "check", pairs, "--model", tiny_model)
    assert code == 2 and "posttrain dpo or posttrain reward" in err


def test_table_names_the_answers(pairs, capsys):
    code, out, _ = run(capsys, "data", "table", pairs, "--objective", "dpo", "--json", "--limit", 1)
    assert code == 0 and json.loads(out) == [
        {"origin": f"{pairs}:1", "prompt": "say red", "answers": ["[1] red please.", "[2] red"]}]


def test_pairs_ask_questions(pairs, tmp_path):
    assert read_prompts(str(pairs), 2) == [[{"role": "user", "content": "say red"}],
                                             [{"role": "user", "content": "say green"}]]
    talk = tmp_path / "hh.jsonl"
    talk.write_text('{"chosen": "\\n\\nHuman: a\\n\\nAssistant: b", "rejected": "\\n\\nHuman: a\\n\\nAssistant: c"}\n')
    assert read_prompts(str(talk), None) == [[{"role": "user", "content": "a"}]]
