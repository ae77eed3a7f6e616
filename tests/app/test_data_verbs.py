"""`posttrain data show|check|table` on a tokenizer folder and plain files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from posttrain.app.cli import main


@pytest.fixture
def mixed(tmp_path):
    """Five rows: plain, two turns, an empty answer, a long one, and a text in another file."""
    path = tmp_path / "mixed.jsonl"
    rows = [{"instruction": "say red", "output": "red."},
            {"instruction": "say blue", "output": "blue.", "history": [["say one", "one."]]},
            {"instruction": "say nothing", "output": ""},
            {"instruction": "say red then " * 30, "output": "red."}]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), "utf-8")
    return path


def lines(capsys, *argv: str) -> list[dict]:
    assert main(["data", "show", *argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_as_json_is_one_line_per_sequence(mixed, tiny_model, capsys):
    found = lines(capsys, str(mixed), "--tokenizer", str(tiny_model))
    assert [row["origin"] for row in found] == [f"{mixed}:{n}" for n in (1, 2, 4)]
    for row in found:
        assert all(set(t) == {"id", "text", "weight", "reason"} for t in row["tokens"])
        assert row["tokens"][0]["weight"] == 0 and any(t["weight"] for t in row["tokens"])
    trained = "".join(t["text"] for t in found[1]["tokens"] if t["reason"] == "content" and t["weight"])
    assert "one." in trained and "blue." in trained and "say" not in trained


def test_show_says_what_is_not_shown(mixed, tiny_model, capsys):
    main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), "--json"])
    assert "not shown: 1 dropped: empty answer" in capsys.readouterr().err


def test_settings_of_a_run_change_what_is_shown(mixed, tiny_model, capsys):
    every = lines(capsys, str(mixed), "--tokenizer", str(tiny_model))
    last = lines(capsys, str(mixed), "--tokenizer", str(tiny_model), "--train_on", "last")
    assert sum(t["weight"] for t in last[1]["tokens"]) < sum(t["weight"] for t in every[1]["tokens"])
    short = lines(capsys, str(mixed), "--tokenizer", str(tiny_model), "--max_length", "64", "--max_lost", "1")
    assert len(short) < len(every)


def test_one_row(mixed, tiny_model, capsys):
    found = lines(capsys, str(mixed), "--tokenizer", str(tiny_model), "--row", "2")
    assert [r["origin"] for r in found] == [f"{mixed}:2"]
    assert main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), "--row", "2"]) == 0
    assert f"{mixed}:2" in capsys.readouterr().out.replace("\n", "")
    assert main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), "--row", "9"]) == 2
    assert "no row begins at line 9" in capsys.readouterr().err


def test_the_terminal_shows_first_and_worst(mixed, tiny_model, capsys):
    assert main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), "--limit", "1"]) == 0
    out = capsys.readouterr().out
    for part in ("first", "longest", "least trained", "⟦", "tokens trained"):
        assert part in out, part
    assert main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), "--limit", "1", "--worst", "0"]) == 0
    assert "longest" not in capsys.readouterr().out


def test_the_page_stands_by_itself(mixed, tiny_model, tmp_path, capsys):
    page = tmp_path / "mask.html"
    assert main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), "--html", str(page)]) == 0
    text = page.read_text("utf-8")
    assert text.startswith("<!doctype html>") and "http" not in text and f"{mixed}:2" in text
    assert str(page) in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "part"), [
    (["--json", "--html", "x.html"], "--json and --html exclude each other"),
    (["--json", "--worst", "2"], "--worst belongs to the terminal"),
    (["--row", "1", "--limit", "2"], "--row shows one row")])
def test_options_that_exclude_each_other(mixed, tiny_model, capsys, argv, part):
    assert main(["data", "show", str(mixed), "--tokenizer", str(tiny_model), *argv]) == 2
    assert part in capsys.readouterr().err


def test_a_malformed_row_stops_or_is_skipped(mixed, tiny_model, capsys):
    mixed.write_text(mixed.read_text() + '{"instruction": \n{"instruction": "say sun", "output": "sun."}\n')
    for verb in ("show", "table"):
        extra = ["--tokenizer", str(tiny_model)] if verb == "show" else ["--limit", "9"]
        assert main(["data", verb, str(mixed), *extra]) == 2
        assert f"{mixed}:5" in capsys.readouterr().err
        assert main(["data", verb, str(mixed), *extra, "--bad_rows", "skip"]) == 0
        capsys.readouterr()


def test_check_exits_by_what_it_finds(mixed, rows, tiny_model, tmp_path, capsys):
    assert main(["data", "check", str(rows), "--tokenizer", str(tiny_model)]) == 0
    assert "nothing found" in capsys.readouterr().out
    assert main(["data", "check", str(mixed), "--tokenizer", str(tiny_model)]) == 1
    assert "empty answer" in capsys.readouterr().out
    assert main(["data", "check", str(mixed), "--tokenizer", str(tiny_model), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ledger"]["rows"]["read"] == 4 and found["findings"]
    assert main(["data", "check", str(tmp_path / "absent.json")]) == 2
    assert main(["data", "check", str(rows), "--tokenizer", str(tmp_path)]) == 2
    assert "the folder holds no tokenizer" in capsys.readouterr().err


def test_table(mixed, capsys):
    assert main(["data", "table", str(mixed), "--limit", "2"]) == 0
    out = capsys.readouterr().out
    assert "mixed.jsonl:2" in out and "[user] say one" in out and "say nothing" not in out
    assert main(["data", "table", str(mixed), "--json", "--limit", "1"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"origin": f"{mixed}:1", "prompt": "say red", "response": "red."}]


def test_table_of_prompts(tmp_path, capsys):
    """Rows of a run that writes its own answers have a prompt and nothing under response."""
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "say red"}\n')
    assert main(["data", "table", str(path), "--json", "--objective", "ppo"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"origin": f"{path}:1", "prompt": "say red", "response": ""}]


def test_table_of_texts(tmp_path, capsys):
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "Once upon a time."}\n')
    assert main(["data", "table", str(path)]) == 0
    assert "Once upon a time." in capsys.readouterr().out
    assert main(["data", "table", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == [{"origin": f"{path}:1", "text": "Once upon a time."}]


def test_looking_at_data_imports_no_torch(mixed, tiny_model):
    code = ("import sys; from posttrain.app.cli import main; "
            f"main(['data', 'show', {str(mixed)!r}, '--tokenizer', {str(tiny_model)!r}, '--row', '1']); "
            "sys.exit('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_model_from_scratch_has_no_tokenizer_before_its_run(rows, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text(f"model_config: shape.yaml\ndata: [{rows}]\n")
    assert main(["data", "show", str(config)]) == 2
    assert "has its tokenizer trained by the run" in capsys.readouterr().err
