"""Reading rows: every kind of file, exact origins, shares and counts, and a long file at once."""

import csv
import gzip
import hashlib
import json
import pickle
import subprocess
import sys

import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.data.read import Spec, open_source, open_sources, parse_spec

ROWS = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(5)]


def write(path, text, newline=""):
    with open(path, "w", encoding="utf-8", newline=newline) as f:
        f.write(text)
    return str(path)


def jsonl(rows=ROWS):
    return "".join(json.dumps(r) + "\n" for r in rows)


def read(path, **kwargs):
    source = open_source(str(path), **kwargs)
    raw = [source[i] for i in range(len(source))]
    return [r.values for r in raw], [r.origin.removeprefix(f"{source.path}:") for r in raw]


def test_jsonl_with_blank_lines_crlf_bom_and_no_last_newline(tmp_path):
    lines = [json.dumps(r) for r in ROWS]
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + (lines[0] + "\r\n\r\n   \n" + lines[1] + "\n\n" + lines[2]).encode())
    assert read(path) == (ROWS[:3], ["1", "4", "6"])


def test_line_separators_inside_a_text_do_not_end_a_line(tmp_path):
    rows = [{"text": "a\u2028b\u2029c\x85d\x0be\x1cf"}, {"text": "second"}]
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).replace(
        "\x0b", "\\u000b").replace("\x1c", "\\u001c"))
    assert read(path) == (rows, ["1", "2"])


@pytest.mark.parametrize(("text", "lines"), [
    (json.dumps(ROWS), ["1"] * 5),
    (json.dumps(ROWS, indent=4), ["2", "6", "10", "14", "18"]),
    (" \n\n" + json.dumps(ROWS[:1]) + "\n\n", ["3"]),
    ("[\n" + ",\n".join(json.dumps(r) for r in ROWS) + "\n]\n", ["2", "3", "4", "5", "6"]),
    (jsonl(), ["1", "2", "3", "4", "5"]),
    ("\n".join(json.dumps(r, indent=2) for r in ROWS), ["1", "5", "9", "13", "17"]),
    (json.dumps({"version": 1, "data": ROWS}, indent=1), ["4", "8", "12", "16", "20"]),
    (json.dumps({"rows": ROWS}), ["1"] * 5),
    (json.dumps(ROWS, indent=4).replace("\n", "\r\n"), ["2", "6", "10", "14", "18"]),
], ids=["one line", "pretty", "spaces", "row a line", "objects by line", "pretty objects", "wrapped", "wrapped flat",
        "crlf"])
def test_json_in_every_layout_has_the_line_where_a_row_begins(tmp_path, text, lines):
    path = write(tmp_path / "a.json", text)
    assert read(path) == (ROWS[:len(lines)], lines)
    packed = tmp_path / "a.json.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    assert read(packed) == (ROWS[:len(lines)], lines)


def test_an_array_larger_than_the_window_and_of_many_bytes_a_character(tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.data.json_index.CHUNK", 64)
    rows = [{"instruction": "问题🙂" * (i % 7), "output": "答" * (300 if i == 9 else i)} for i in range(30)]
    path = write(tmp_path / "a.json", json.dumps(rows, ensure_ascii=False, indent=1))
    assert read(path) == (rows, [str(2 + 4 * i) for i in range(30)])
    monkeypatch.setattr("posttrain.data.files.CHUNK", 64)
    path = write(tmp_path / "a.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
    assert read(path) == (rows, [str(i + 1) for i in range(30)])


@pytest.mark.parametrize("window", [1, 3, 7, 16])
def test_values_that_a_window_cuts_in_two(tmp_path, monkeypatch, window):
    monkeypatch.setattr("posttrain.data.json_index.CHUNK", window)
    rows = [{"a": -1.25e-7, "b": [True, None, "\\u00e9\"é"]}, {"a": {"c": 12345678901234567890}}]
    wrapped = {"meta": 0.4616930885516656, "more": -1e-5, "flag": False, "data": rows, "last": "}"}
    path = write(tmp_path / "a.json", json.dumps(wrapped, ensure_ascii=False, indent=1))
    assert read(path) == (rows, ["6", "14"])
    path = write(tmp_path / "b.json", "\n".join(json.dumps(r, indent=1) for r in rows))
    assert read(path)[0] == rows


def test_csv_with_quoted_line_ends(tmp_path):
    with open(tmp_path / "a.csv", "w", newline="", encoding="utf-8-sig") as f:
        out = csv.writer(f)
        out.writerow(["instruction", "output"])
        out.writerow(["one, two", 'say "hi"\nand go'])
        out.writerow(["三\r\n四", ""])
        f.write("\r\n")
        out.writerow(["last", "x" * 200_000])
    values, lines = read(tmp_path / "a.csv")
    assert values == [{"instruction": "one, two", "output": 'say "hi"\nand go'},
                      {"instruction": "三\r\n四", "output": ""}, {"instruction": "last", "output": "x" * 200_000}]
    assert lines == ["2", "4", "7"]


def test_tabs_and_semicolons(tmp_path):
    write(tmp_path / "a.tsv", "question\tanswer\na,b\tc\n")
    write(tmp_path / "b.csv", "question;answer\na,b;c\n")
    assert read(tmp_path / "a.tsv") == read(tmp_path / "b.csv") == ([{"question": "a,b", "answer": "c"}], ["2"])


def test_parquet_rows_are_counted_from_one_and_lose_arrows_nulls(tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    messages = [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho", "weight": 1}]] * 2
    pq.write_table(pa.table({"messages": messages, "system": ["be brief", None]}), tmp_path / "a.parquet")
    values, lines = read(tmp_path / "a.parquet")
    assert values == [{"messages": messages[0], "system": "be brief"}, {"messages": messages[1]}]
    assert lines == ["1", "2"]
    assert [m["role"] for m in open_source(str(tmp_path / "a.parquet")).row(0).messages] == [
        "system", "user", "assistant"]


def test_text_is_gathered_by_paragraphs_and_long_lines_stand_alone(tmp_path):
    prose = "One\r\ntwo.\r\n\r\n\r\nThree.\n" + "\n" + "x" * 4090 + "\n\nEnd.\n"
    assert read(write(tmp_path / "prose.txt", prose)) == (
        [{"text": "One\ntwo.\n\n\nThree."}, {"text": "x" * 4090}, {"text": "End."}], ["1", "7", "9"])
    lines = [f"{i} " + "word " * 30 for i in range(3)]
    assert read(write(tmp_path / "lines.txt", "\n".join(lines))) == ([{"text": x} for x in lines], ["1", "2", "3"])
    assert read(write(tmp_path / "short.txt", "a\nb\nc\n")) == ([{"text": "a\nb\nc"}], ["1"])


def test_a_folder_and_a_glob_are_their_data_files_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for name, row in (("b.jsonl", ROWS[1]), ("a.json", ROWS[0]), ("c.csv", None), ("README.md", None),
                      (".x.json", None), ("notes.txt", None)):
        write(tmp_path / "d" / name, "instruction,output\nq,a\n" if name == "c.csv" else jsonl([row or {}]))
    folder = open_source("d")
    assert [folder[i].origin for i in range(len(folder))] == ["d/a.json:1", "d/b.jsonl:1", "d/c.csv:2"]
    globbed = open_source("d/*.jso*")
    assert [globbed[i].origin for i in range(len(globbed))] == ["d/a.json:1", "d/b.jsonl:1"]
    assert folder.find("d/c.csv:2") == 2 and folder.find("1") == 0 and folder.find("d/c.csv:1") is None
    assert [f["path"] for f in folder.files()] == ["d/a.json", "d/b.jsonl", "d/c.csv"]


@pytest.mark.parametrize(("text", "spec"), [
    ("x.jsonl", Spec("x.jsonl")), ("x.jsonl@0.2", Spec("x.jsonl", 0.2)), ("x.jsonl[#500]", Spec("x.jsonl", None, 500)),
    ("x.jsonl[#500]@.25", Spec("x.jsonl", 0.25, 500)), ("x.jsonl@0.5[#7]", Spec("x.jsonl", 0.5, 7)),
    ("me@home.jsonl", Spec("me@home.jsonl")), ("a@b/c.json", Spec("a@b/c.json")),
    ("d/[ab]*.json[#3]", Spec("d/[ab]*.json", None, 3)), ("owner/name:train@0.1", Spec("owner/name:train", 0.1)),
])
def test_specs(text, spec):
    assert parse_spec(text) == spec


def test_a_file_whose_name_looks_like_a_share_is_taken_as_it_stands(tmp_path):
    path = write(tmp_path / "rows.jsonl@0.2", jsonl())
    source = open_source(path + "[#2]")
    assert (len(source), source.share, source.path) == (2, None, path)


def test_first_rows_and_share(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl())
    source = open_source(f"{path}[#3]@0.2", 7)
    assert (len(source), source.share, source.index, source.row(2).source) == (3, 0.2, 7, 7)
    assert [source.row(i).origin for i in range(3)] == [f"{path}:1", f"{path}:2", f"{path}:3"]
    assert source.origin(2) == f"{path}:3" and source.find("4") is None
    with pytest.raises(IndexError):
        source[3]
    assert len(open_source(f"{path}[#99]")) == 5


def test_fingerprint_is_the_sum_of_the_file(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl())
    expected = hashlib.sha256(jsonl().encode()).hexdigest()
    assert open_source(path).fingerprint() == expected
    assert open_source(path).files() == [{"path": path, "rows": 5, "sha256": expected}]
    write(tmp_path / "b.jsonl", jsonl(ROWS[:1]))
    both = hashlib.sha256(f"{expected}\n{hashlib.sha256(jsonl(ROWS[:1]).encode()).hexdigest()}".encode()).hexdigest()
    assert open_source(str(tmp_path)).fingerprint() == both


def test_a_source_can_be_pickled(tmp_path):
    source = pickle.loads(pickle.dumps(open_source(write(tmp_path / "a.jsonl", jsonl()))))
    assert source[4].values == ROWS[4]


def test_a_file_that_changes_is_an_error(tmp_path):
    path = write(tmp_path / "a.jsonl", jsonl())
    source = open_source(path)
    write(path, jsonl(ROWS[:4]))
    with pytest.raises(UserError, match="the file changed while it was being read"):
        source[0]


def test_named_columns_go_to_the_sources_that_have_them(tmp_path):
    a = write(tmp_path / "a.jsonl", jsonl([{"q": "1+1", "a": "2"}]))
    b = write(tmp_path / "b.jsonl", jsonl([{"body": "plain"}]))
    pair, text = open_sources([a, b + "@0.2"], columns={"prompt": "q", "response": "a", "text": "body"})
    assert [m["content"] for m in pair.row(0).messages] == ["1+1", "2"]
    assert (text.row(0).text, text.index, text.share) == ("plain", 1, 0.2)
    with pytest.raises(UserError) as e:
        open_sources([a, b], columns={"prompt": "q", "response": "answr"})
    assert str(e.value) == ("error: no data has a column `answr`\n  where:    columns: response=answr\n"
                            "  found:    q, a, body\n  fix:      name the columns, for example --columns "
                            "prompt=QUESTION,response=ANSWER (parts: messages, prompt, input, response, system, "
                            "history, tools, text)")


class FakeDataset(list):
    num_rows = property(len)
    _fingerprint = "abc"


def test_a_hub_id_goes_through_datasets(monkeypatch, tmp_path):
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        rows = FakeDataset([{"question": "q", "answer": "a", "extra": None}])
        return rows if split else {"train": rows}

    monkeypatch.setattr(datasets, "load_dataset", load)
    for spec in ("owner/set", "owner/set:test", "gsm8k:main:train", "owner/set:test[#1]@0.5"):
        source = open_source(spec)
        assert source[0].values == {"question": "q", "answer": "a"} and source[0].origin == source.path + ":1"
    assert asked == [("owner/set", None, None), ("owner/set", None, "test"), ("gsm8k", "main", "train"),
                     ("owner/set", None, "test")]
    assert source.fingerprint() == hashlib.sha256(b"abc").hexdigest()


def test_an_existing_path_never_goes_to_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("posttrain.data.hub._load", lambda *a: pytest.fail("the hub was asked"))
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "set", jsonl())
    assert len(open_source("owner/set")) == 5
    for missing in ("owner/sett", "rows", "./a/b", "nowhere/rows.jsonl", "~/nowhere"):
        with pytest.raises(UserError, match="does not exist"):
            open_source(missing)
    with pytest.raises(UserError, match="does not exist"):
        open_source("some/set", hub_ok=False)


def test_reading_imports_nothing_heavy():
    code = ("import sys, posttrain.data.read, posttrain.data.check\n"
            "print([m for m in ('torch', 'transformers', 'datasets', 'pyarrow', 'pandas') if m in sys.modules])")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_long_file_opens_fast_and_flat(tmp_path):
    """200,000 rows, 46 MB: a second is ten times what it takes, and 20 MB of memory would be 100 bytes a row."""
    line = json.dumps({"instruction": "q" * 100, "output": "a" * 100}) + "\n"
    path = write(tmp_path / "big.jsonl", line * 200_000)
    code = ("import sys, time, psutil\nfrom posttrain.data.read import open_source\nme = psutil.Process()\n"
            "at, before = time.perf_counter(), me.memory_info().rss\n"
            "s = open_source(sys.argv[1])\nassert s[199_999].origin.endswith(':200000')\n"
            "print(len(s), time.perf_counter() - at, me.memory_info().rss - before)")
    out = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) == 200_000 and float(out[1]) < 1.0 and int(out[2]) < 40e6


def test_a_row_error_does_not_stop_the_rows_after_it(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", jsonl(ROWS[:2]) + "{broken\n" + jsonl(ROWS[3:])))
    assert len(source) == 5 and source[3].values == ROWS[3] and source[4].origin.endswith(":5")
    with pytest.raises(RowError):
        source[2]
    assert source.columns == ["instruction", "output"] and source.format.name == "alpaca"


def test_a_format_is_found_behind_many_bad_rows(tmp_path):
    source = open_source(write(tmp_path / "a.jsonl", "{broken\n" * 200 + jsonl()))
    assert source.format.name == "alpaca" and source.row(200).messages[1]["content"] == "answer 0"
    source = open_source(write(tmp_path / "b.jsonl", "{broken\n" * 3))
    with pytest.raises(RowError) as e:
        source.format  # noqa: B018 - detection is what fails
    assert e.value.where == f"{tmp_path}/b.jsonl:1"
