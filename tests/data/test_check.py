"""`data check`: every fault is counted, named and placed; a clean file is clean."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from posttrain.core.config import make_settings
from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Sequence
from posttrain.data.check import check
from posttrain.data.report import Finding


@dataclass
class Made:
    sequences: list = field(default_factory=list)
    dropped: str | None = None
    rendered: int = 0
    cut: int = 0
    was_cut: bool = False


class Letters:
    """A renderer whose tokens are letters: the answer is trained, what stands beyond max_length is cut or lost."""

    def __init__(self, *, enable_thinking, max_length):
        self.max_length = max_length
        self.spec = SimpleNamespace(chat=SimpleNamespace(switches=()), enable_thinking=None)
        self.follows = None  # not asked where the template has no switch

    def render(self, rows):
        return [self._render(row) for row in rows]

    def _render(self, row):
        if row.kind == "text":
            return Made([self._sequence(row, 0, len(row.text))], rendered=len(row.text))
        asked = sum(len(m["content"]) for m in row.messages[:-1])
        answer = len(row.messages[-1]["content"])
        if "poison" in row.messages[0]["content"]:
            return RowError("the template cannot render the row", found="poison")
        if not row.messages[-1]["content"].strip():
            return Made(dropped="empty answer", rendered=asked)
        if asked >= self.max_length:
            return Made(dropped="longer than max_length", rendered=asked + answer)
        cut = max(0, asked + answer - self.max_length)
        return Made([self._sequence(row, asked, answer - cut)], None, asked + answer, cut, cut > 0)

    @staticmethod
    def _sequence(row, masked, trained):
        weights = np.array([0.0] * masked + [1.0] * trained, np.float32)
        return Sequence(np.zeros(len(weights), np.int32), weights, np.zeros(len(weights), np.uint8), row.origin)


def pair(q, a, **more):
    return {"instruction": q, "output": a, **more}


def report_of(tmp_path, rows, eval_rows=None, **more):
    for name, given in (("data.jsonl", rows), ("eval.jsonl", eval_rows or [])):
        (tmp_path / name).write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in given))
    held = {"eval_data": str(tmp_path / "eval.jsonl")} if eval_rows else {}
    settings = make_settings({"data": str(tmp_path / "data.jsonl"), "max_length": 20, **held, **more})
    return check(settings, None, make_renderer=Letters)


def found(report, tmp_path):
    return [(f.kind, f.count, f.message, [r.replace(f"{tmp_path}/", "") for r in f.rows]) for f in report.found]


def test_a_clean_file(tmp_path):
    report = report_of(tmp_path, [pair(f"question {i}", "a" * i) for i in range(1, 11)], max_length=30)
    assert (report.findings, report.found, report.malformed) == (0, [], [])
    data = report.to_json()
    assert data["ledger"] == {"rows": {"read": 10, "trained": 10, "cut": 0, "dropped": {}},
                              "tokens": {"rendered": 156, "trained": 55, "masked": 101, "cut": 0, "dropped": 0}}
    assert data["lengths"] == {"min": 11, "median": 15, "p90": 19, "p95": 21, "p99": 21, "max": 21}
    assert (data["max_length"], data["max_length_99"], data["findings"]) == (30, 21, [])


def test_every_fault_is_counted_named_and_placed(tmp_path):
    rows = [pair("one", "1"), pair("two", "2"), pair("one", "1"), pair("two", "II"), pair("void", " "), '{"broken',
            pair("nr", 5), {"instruction": "x"}, pair("poison", "a"), pair("l" * 25, "a"), pair("long", "a" * 40),
            pair("in", "a", input="<No input>"), pair(" ", "a"), pair("two", "zwei")]
    report = report_of(tmp_path, rows, bad_rows="skip", max_lost=1)
    assert found(report, tmp_path) == [
        ("malformed", 1, "the line is not valid JSON", ["data.jsonl:6"]),
        ("malformed", 1, "column `output` is not text", ["data.jsonl:7"]),
        ("malformed", 1, "the row has no column `output`", ["data.jsonl:8"]),
        ("malformed", 1, "the template cannot render the row", ["data.jsonl:9"]),
        ("longer than max_length", 1, "dropped: longer than max_length", ["data.jsonl:10"]),
        ("cut", 1, "cut to max_length, from the end of the conversation", ["data.jsonl:11"]),
        ("empty answer", 1, "empty answers", ["data.jsonl:5"]),
        ("spelled-out input", 1, "column `input` spells out that there is no input: leave it empty", ["data.jsonl:12"]),
        ("empty question", 1, "empty questions", ["data.jsonl:13"]),
        ("duplicate", 1, "exact duplicates of an earlier row", ["data.jsonl:3 = data.jsonl:1"]),
        ("contradiction", 3, "different answers to the same prompt (1 prompts)",
         ["data.jsonl:2 ≠ data.jsonl:4 ≠ data.jsonl:14"]),
    ]
    assert report.findings == 11
    assert report.ledger.to_json()["rows"] == {"read": 14, "trained": 8, "cut": 1, "dropped": {
        "empty answer": 1, "longer than max_length": 1, "malformed row": 4}}
    assert report.malformed[1] == {"file": str(tmp_path / "data.jsonl"), "line": 7,
                                   "reason": "column `output` is not text", "found": "5 (a number)",
                                   "fix": "mend the row, or set bad_rows=skip to drop it and count it"}


def test_what_would_stop_the_run_is_said_first(tmp_path):
    rows = [pair(f"q{i}", "a") for i in range(8)] + ["{", pair("l" * 30, "a")]
    report = report_of(tmp_path, rows)
    assert found(report, tmp_path)[:2] == [
        ("stops the run", 1, "malformed rows stop the run: mend them, or set bad_rows=skip", ["data.jsonl:9"]),
        ("stops the run", 2, report.found[1].message, [report.found[1].rows[0].replace(f"{tmp_path}/", "")])]
    assert report.found[1].message.startswith("too many rows are dropped: ")
    assert "max_lost" in report.found[1].message


def test_all_answers_empty(tmp_path):
    report = report_of(tmp_path, [pair(f"q{i}", "") for i in range(5)])
    assert report.found[0].message == (
        "all rows are dropped: empty answer: 5 of the first 5 rows: 5 empty answer; name the column that holds the "
        "answers (columns: response=…), or allow it with max_lost: 1")


def test_all_rows_malformed(tmp_path):
    report = report_of(tmp_path, ["{", "{", "["], bad_rows="skip", max_lost=1)
    assert found(report, tmp_path) == [
        ("malformed", 3, "the line is not valid JSON", ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"])]
    assert (report.lengths, report.fits_99, report.sources[0]["format"]) == ({}, None, "unknown")


def test_roles_out_of_order_and_multi_turn_repeats(tmp_path):
    def talk(*texts):
        return {"messages": [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]}

    wrong = {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
    report = report_of(tmp_path, [talk("a", "b", "c", "d"), talk("a", "b", "c", "e"), talk("a", "x", "c", "d"), wrong],
                       bad_rows="skip", max_lost=1)
    assert found(report, tmp_path) == [
        ("malformed", 1, "the roles are out of order", ["data.jsonl:4"]),
        ("contradiction", 2, "different answers to the same prompt (1 prompts)", ["data.jsonl:1 ≠ data.jsonl:2"])]


def test_eval_data_is_checked_too_and_leaks_are_found(tmp_path):
    report = report_of(tmp_path, [pair("one", "1"), pair("two", "2")],
                       [pair("two", "two"), pair("three", "3"), pair("four", "")])
    assert found(report, tmp_path) == [
        ("leak", 1, "rows of eval_data whose prompt also stands in data", ["eval.jsonl:1"]),
        ("empty answer", 1, "eval_data: empty answers", ["eval.jsonl:3"])]
    assert [s["role"] for s in report.sources] == ["data", "eval_data"]
    assert report.ledger.to_json()["rows"]["read"] == 2


def test_texts_do_not_count_for_the_length_to_keep(tmp_path):
    report = report_of(tmp_path, [{"text": "t" * n} for n in (5, 90)] + [{"text": ""}], max_lost=1)
    assert (report.fits_99, report.lengths["max"]) == (None, 90)
    assert [f.message for f in report.found] == ["dropped: nothing to train", "empty texts"]


def test_files_that_cannot_be_read_are_errors(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        check(make_settings({"data": str(tmp_path / "none.jsonl")}), None, make_renderer=Letters)
    with pytest.raises(UserError, match="no known format"):
        report_of(tmp_path, [{"a": 1}])


def test_progress_counts_every_row(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(pair(f"q{i}", "a")) + "\n" for i in range(1100)))
    seen = []
    settings = make_settings({"data": str(tmp_path / "a.jsonl")})
    check(settings, None, make_renderer=Letters, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(512, 1100), (1024, 1100), (1100, 1100)]


def test_the_report_on_screen(tmp_path):
    report = report_of(tmp_path, [pair("one", "1", note="x"), pair("one", "1"), pair("one", "1"), pair("one", "1"),
                                  pair("one", "1")])
    assert [line.replace(f"{tmp_path}/", "") for line in report.lines()] == [
        "data.jsonl: 5 rows, alpaca; not read: note",
        "rows    5 read = 5 trained (0 cut) + 0 dropped",
        "tokens  20 rendered = 5 trained + 15 masked + 0 cut + 0 dropped",
        "length  min 4, median 4, p90 4, p95 4, p99 4, max 4 tokens a row",
        "        max_length 4 would keep 99 % of the conversations whole (now 20)",
        "thinking as the template has it: the chat template has no such switch",
        "found   4 exact duplicates of an earlier row",
        "        data.jsonl:2 = data.jsonl:1", "        data.jsonl:3 = data.jsonl:1",
        "        data.jsonl:4 = data.jsonl:1", "        … 1 more",
        "1 kinds of finding"]


def test_lists_are_capped_and_counts_are_not(tmp_path):
    report = report_of(tmp_path, [pair("one", "1")] + ["{"] * 1200, bad_rows="skip", max_lost=1)
    assert report.found[0].count == 1200
    data = report.to_json()
    assert (len(data["malformed"]), len(data["findings"][0]["rows"])) == (1000, 1000)
    assert Finding("k", 1, "m", ["r"]).within("eval_data").message == "eval_data: m"


def test_a_proof_that_fails_is_a_fault_of_its_row(tmp_path):
    class Strict(Letters):
        def render(self, rows):
            if any("unproved" in r.messages[0]["content"] for r in rows):
                raise UserError("a trained span does not match its message", where="elsewhere", found="x", fix="y")
            return super().render(rows)

    (tmp_path / "a.jsonl").write_text("".join(json.dumps(pair(q, "a")) + "\n" for q in ("one", "unproved", "three")))
    settings = make_settings({"data": str(tmp_path / "a.jsonl"), "bad_rows": "skip", "max_lost": 1})
    report = check(settings, None, make_renderer=Strict)
    assert found(report, tmp_path) == [("malformed", 1, "a trained span does not match its message", ["a.jsonl:2"])]
    assert report.ledger.to_json()["rows"] == {"read": 3, "trained": 2, "cut": 0, "dropped": {"malformed row": 1}}


def test_real_tool_calls_with_the_real_renderer(shared_data):
    from posttrain.data.tokenizer import load_tokenizer

    path = shared_data / "llamafactory_demo" / "glaive_toolcall_zh_demo.json"
    spec = load_tokenizer(shared_data / "qwen3_tokenizer", chat_template="chatml")
    report = check(make_settings({"data": str(path), "max_length": 4096}), spec)
    assert [(f.kind, f.count) for f in report.found] == [("stops the run", 2), ("malformed", 2), ("duplicate", 43)]
    assert [f.rows[0] for f in report.found] == [f"{path}:5819", f"{path}:5819", f"{path}:3728 = {path}:2"]
    assert report.ledger.to_json()["rows"] == {"read": 300, "trained": 298, "cut": 0, "dropped": {"malformed row": 2}}
