"""Input that cannot be read: every message, with its exact file and line."""

import gzip
import json
import os

import pytest

from posttrain.core.errors import RowError, UserError
from posttrain.data.read import open_source

GOOD = json.dumps({"instruction": "q", "output": "a"})


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def put(name, content):
    with open(name, "wb") as f:
        f.write(content if isinstance(content, bytes) else content.encode())


def error_of(spec, row=None, **kwargs) -> UserError:
    with pytest.raises(UserError) as e:
        source = open_source(spec, **kwargs)
        source.format if row is None else source.row(row)  # noqa: B018 - detection is what fails
    assert isinstance(e.value, RowError) == (row is not None)
    return e.value


def fields(e):
    return {k: v for k in ("where", "found", "expected", "fix") if (v := getattr(e, k))}


def test_a_malformed_line_in_the_middle():
    put("train.jsonl", "\n".join([GOOD] * 20 + ['{"instruction": "q", "output": "a'] + [GOOD] * 5))
    assert str(error_of("train.jsonl", 20)) == (
        "error: the line is not valid JSON\n"
        "  where:    train.jsonl:21\n"
        '  found:    Unterminated string starting at column 32: {"instruction": "q", "output": "a\n'
        "  expected: one whole JSON object per line\n"
        "  fix:      mend the line, or set bad_rows=skip to drop it and count it")


@pytest.mark.parametrize(("line", "found"), [
    (GOOD + GOOD, 'Extra data at column 36: {"instruction": "q", "output": "a"}{"instruction": "q", "output":…'),
    ("{'a': 1}", "Expecting property name enclosed in double quotes at column 2: {'a': 1}"),
    ('{"a": 1,}', 'Expecting property name enclosed in double quotes at column 9: {"a": 1,}'),
])
def test_malformed_lines(line, found):
    put("a.jsonl", f"{GOOD}\n\n{line}\n{GOOD}\n")
    e = error_of("a.jsonl", 1)
    assert (e.message, e.where, e.found) == ("the line is not valid JSON", "a.jsonl:3", found)


def test_rows_that_are_no_objects_or_too_deep_or_half_a_character():
    put("a.jsonl", "\n".join([GOOD, '["x"]', "[" * 100_000, '{"a": ' + "9" * 5000 + "}", r'{"text": "x\ud83d"}',
                              r'{"text": "\ud83d\ude00"}']))
    e = error_of("a.jsonl", 1)
    assert fields(e) == {"where": "a.jsonl:2", "found": '["x"]',
                         "expected": 'an object such as {"instruction": …, "output": …}'}
    assert e.message == "a row is not a JSON object"
    e = error_of("a.jsonl", 2)
    assert (e.message, e.where) == ("the row cannot be read as JSON", "a.jsonl:3")
    e = error_of("a.jsonl", 3)
    assert (e.message, e.where) == ("the row cannot be read as JSON", "a.jsonl:4") and "4300 digits" in e.found
    e = error_of("a.jsonl", 4)
    assert (e.message, e.where) == ("the text holds half a character", "a.jsonl:5")
    assert e.found == "\\ud83d without its other half"
    assert open_source("a.jsonl")[5].values == {"text": "😀"}


@pytest.mark.parametrize(("text", "line", "found"), [
    (f"[\n{GOOD},\n{GOOD},\n]", 3, "a comma after the last row"),
    (f"[\n{GOOD},\n{GOOD}\n", 4, "the list is never closed, near: "),
    (f"[\n{GOOD}\n{GOOD}\n]", 3, "no comma between two rows, near: "),
    (f"[\n{GOOD},\n\n{GOOD[:-1]}\n]", 5, "Expecting ',' delimiter, near: "),
    (f"[\n{GOOD}\n]\n{GOOD}", 4, "more text after the closing ], near: "),
    (f"[\n{GOOD},,\n{GOOD}]", 2, "no JSON value, near: "),
    ("[\n{\n \"instruction\": \"问题\",\n \"output\": \"答\n案\"\n}]", 4, "Invalid control character, near: "),
])
def test_a_malformed_list_is_an_error_at_its_line(text, line, found):
    put("a.json", text)
    e = error_of("a.json")
    assert (e.message, e.where) == ("the JSON file is malformed", f"a.json:{line}")
    assert e.found.startswith(found)
    put("a.json.gz", gzip.compress(text.encode()))
    assert error_of("a.json.gz").where == f"a.json.gz:{line}"


def test_the_fix_of_a_trailing_comma_and_of_any_other_fault():
    put("a.json", f"[{GOOD},]")
    e = error_of("a.json")
    assert (e.expected, e.fix) == ("no comma before the closing ]", "delete the comma at this line")
    put("a.json", f"[{GOOD}")
    e = error_of("a.json")
    assert (e.expected, e.fix) == ("a ] at the end", "mend the file at this line; only files of one row per line can "
                                                     "skip bad rows")


def test_a_broken_first_line_of_a_json_of_lines():
    put("a.json", f'{{"instruction": \n{GOOD}\n{GOOD}\n')
    assert error_of("a.json", 0).where == "a.json:1"
    put("b.json", '{"instruction": "q",\n "output" "a"}\n')
    e = error_of("b.json")
    assert (e.where, e.found) == ("b.json:2", 'Expecting \':\' delimiter, near: {"instruction": "q", "output" "a"}')


def test_bytes_that_are_no_utf8():
    put("a.jsonl", f"{GOOD}\n".encode() + '{"text": "caf\xe9"}\n'.encode("latin-1") + f"{GOOD}\n".encode())
    assert str(error_of("a.jsonl", 1)) == (
        "error: the text is not UTF-8\n"
        "  where:    a.jsonl:2\n"
        "  found:    byte 0xe9, byte 14 of line 2\n"
        "  expected: UTF-8 text\n"
        "  fix:      convert the file (for example iconv -f GB18030 -t UTF-8), or set bad_rows=skip")
    put("a.json", '[\n{\n"text": "ok"},\n{"a": 1,\n"text": "caf\xe9"}]'.encode("latin-1"))
    e = error_of("a.json", 1)
    assert (e.where, e.found) == ("a.json:4", "byte 0xe9, byte 13 of line 5")
    put("a.csv", 'question,answer\nq,a\n"x\ny",caf\xe9\n'.encode("latin-1"))
    e = error_of("a.csv", 1)
    assert (e.where, e.found) == ("a.csv:3", "byte 0xe9, byte 7 of line 4")
    put("a.txt", b"caf\xe9\n")
    e = error_of("a.txt", 0)
    assert (e.where, e.found) == ("a.txt:1", "byte 0xe9, byte 4 of line 1")


def test_utf16_and_a_damaged_gzip():
    put("a.jsonl", GOOD.encode("utf-16"))
    assert str(error_of("a.jsonl")) == ("error: the file is UTF-16, not UTF-8\n  where:    a.jsonl\n"
                                        "  found:    it begins with ff fe\n  expected: UTF-8\n"
                                        "  fix:      iconv -f UTF-16 -t UTF-8 a.jsonl > new file")
    put("a.jsonl.gz", gzip.compress((GOOD * 50).encode())[:-12])
    e = error_of("a.jsonl.gz")
    assert (e.message, e.where) == ("the gzip file is damaged or cut short", "a.jsonl.gz")
    assert e.fix == "fetch or compress it again"


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n\n\t\r\n", gzip.compress(b"")])
def test_an_empty_file(content):
    put("a.jsonl", content)
    e = error_of("a.jsonl")
    assert (e.message, e.where, e.expected) == ("the file is empty", "a.jsonl", "at least one row")


@pytest.mark.parametrize(("name", "content"), [("a.json", "[]"), ("a.csv", "question,answer\n"), ("a.json", "[ \n ]")])
def test_a_file_without_rows(name, content):
    put(name, content)
    e = error_of(name)
    assert (e.message, e.where, e.expected) == ("the file holds no rows", name, "at least one row")


def test_a_missing_file_names_the_nearest():
    put("train.jsonl", GOOD)
    assert str(error_of("trian.jsonl")) == ("error: the data file does not exist\n  where:    trian.jsonl\n"
                                            "  fix:      did you mean train.jsonl?")
    assert error_of("nowhere/rows.json").fix == "this folder holds train.jsonl"
    e = error_of("*.csv")
    assert (e.message, e.where) == ("no file matches", "*.csv")


def test_folders_without_data_and_things_that_are_no_file(here):
    (here / "d" / "sub").mkdir(parents=True)
    put("d/README.md", "x")
    e = error_of("d")
    assert e.message == "the folder holds no data files"
    assert fields(e) == {"where": "d", "found": "README.md, sub/",
                         "expected": "JSON, JSONL, CSV, TSV, Parquet or text files, plain or .gz",
                         "fix": "name d/sub, or a glob such as d/**/*.jsonl"}
    assert error_of("/dev/null").message == "the data is no regular file"
    put("a.xlsx", "PK\x03\x04 and more")
    e = error_of("a.xlsx")
    assert (e.message, e.found) == ("the kind of the file is not known", "it begins with b'PK\\x03\\x04 and'")
    put("a.parquet", "no")
    assert error_of("a.parquet").message == "the file is not Parquet"
    put("b.parquet", "PAR1 and nothing more")
    assert error_of("b.parquet").message == "the Parquet file cannot be read"


@pytest.mark.parametrize(("spec", "message", "found", "expected"), [
    ("a.jsonl@2", "the data names a share that has no meaning", "'2'", "a number above 0 and below 1, as in PATH@0.2"),
    ("a.jsonl@x", "the data names a share that has no meaning", "'x'", "a number above 0 and below 1, as in PATH@0.2"),
    ("a.jsonl@0", "the data names a share that has no meaning", "'0'", "a number above 0 and below 1, as in PATH@0.2"),
    ("a.jsonl@nan", "the data names a share that has no meaning", "'nan'",
     "a number above 0 and below 1, as in PATH@0.2"),
    ("a.jsonl[#0]", "the data names a number of rows that has no meaning", "'0'", "1 or more, as in PATH[#500]"),
    ("a.jsonl[#1e3]", "the data names a number of rows that has no meaning", "'1e3'", "1 or more, as in PATH[#500]"),
    ("builtin:nothing", "there is no embedded data of this name", "",
     "builtin:rows, builtin:prose, builtin:held_out, builtin:facts, builtin:general"),
])
def test_specs_without_a_meaning(spec, message, found, expected):
    put("a.jsonl", GOOD)
    e = error_of(spec)
    assert (e.message, e.where, e.found, e.expected) == (message, spec, found, expected)


@pytest.mark.parametrize(("settings", "message", "where", "found"), [
    ({"data": "builtin@0.1"}, "the only data source asks for a share, so nothing says how long an epoch is", "data",
     "builtin@0.1"),
    ({"data": "builtin:prose@1.5"}, "the data names a share that has no meaning", "builtin:prose@1.5", "'1.5'"),
    ({"data": ["builtin", "builtin@10%"]}, "the data names a share that has no meaning", "builtin@10%", "'10%'"),
    ({"data": "@abc"}, "the data names a share that has no meaning", "@abc", "'abc'"),
    ({"data": ["builtin", "a@0.5", "b@0.5"]}, "the shares leave no room in an update", "data", "a@0.5, b@0.5"),
    ({"data": "builtin", "eval_data": "a.jsonl@0.5"}, "eval_data takes no share", "a.jsonl@0.5", "@0.5")])
def test_shares_are_judged_before_anything_is_begun(settings, message, where, found, monkeypatch):
    from posttrain.app import launch
    from posttrain.core.config import make_settings

    monkeypatch.setattr(launch, "settle", lambda *a: pytest.fail("the run had begun"))
    with pytest.raises(UserError) as e:
        launch.launch(make_settings({**settings, "output_dir": "run"}), None)
    assert (e.value.message, e.value.where, e.value.found) == (message, where, found)
    assert not os.path.exists("run")


def test_csv_rows_that_do_not_fit():
    put("a.csv", 'question,answer\none,1\ntwo,2,3\n"three\n3",\n"four"4,x\nfive,"never closed\nsix,6\n')
    source = open_source("a.csv")
    assert len(source) == 5 and source[2].values == {"question": "three\n3", "answer": ""}
    e = error_of("a.csv", 1)
    assert (e.message, e.where, e.found, e.expected) == (
        "the CSV row does not fit the header", "a.csv:3", "3 fields", "2: question, answer")
    assert e.fix == "quote fields that hold a comma, or set bad_rows=skip"
    e = error_of("a.csv", 3)
    assert (e.message, e.where, e.found) == ("the CSV row is malformed", "a.csv:6", "',' expected after '\"'")
    e = error_of("a.csv", 4)
    assert (e.where, e.found) == ("a.csv:7", "a quoted field is never closed")
    put("b.csv", "a,b,a\n1,2,3\n")
    e = error_of("b.csv")
    assert (e.message, e.where, e.fix) == ("a column name stands twice in the header", "b.csv:1", "rename one `a`")


def test_several_lists_in_one_file():
    put("a.json", '{"train": [{"text": "a"}],\n "examples": [{"text": "b"}]}')
    e = error_of("a.json")
    assert (e.message, e.found, e.fix) == ("the file holds several lists of rows", "train, examples",
                                           "write each list to a file of its own")


def test_without_the_data_extra(monkeypatch):
    import builtins

    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] in ("pyarrow", "datasets"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    put("a.parquet", b"PAR1....PAR1")
    e = error_of("a.parquet")
    assert (e.message, e.fix) == ("Parquet files need the extra packages `pyarrow` and `datasets`",
                                  "pip install 'posttrain[data]'")
    e = error_of("owner/set:train")
    assert (e.message, e.fix) == ("hub data sets need the extra package `datasets`",
                                  "pip install 'posttrain[data]'; or name a file that exists")


def test_a_hub_that_gives_nothing(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach the hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    assert fields(error_of("owner/set:test")) == {
        "where": "owner/set:test", "found": "ConnectionError: Couldn't reach the hub",
        "expected": "an existing path, or owner/name[:config][:split] of the hub",
        "fix": "check the name and the connection"}
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: {"a": [1], "b": [2]})
    e = error_of("owner/set")
    assert (e.message, e.found, e.fix) == ("the hub data set has several splits and none is called train", "a, b",
                                           "name one: owner/set:a")
