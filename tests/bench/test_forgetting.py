"""What the replay benchmark trains on and asks: no held-back row is taught, no held-out question is of the task."""

import json
from pathlib import Path

import pytest

from posttrain.builtin import held_out_path

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def forgetting(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import forgetting
    return forgetting


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_taught_old_and_held_back_rows_share_nothing(forgetting, tmp_path):
    narrow, old = map(read, forgetting.parts(tmp_path))
    kept_back = forgetting.narrow_rows()[::forgetting.HELD_BACK]
    assert (len(narrow), len(kept_back), len(old)) == (416, 52, 3298)
    assert not {r["instruction"] for r in narrow} & {r["instruction"] for r in kept_back}
    assert len(forgetting.builtin_rows()) == 416 + 52 + 3298
    assert {r["kind"] for r in narrow} == {forgetting.NARROW} and forgetting.NARROW not in {r["kind"] for r in old}


def test_the_narrow_task_wants_one_word_and_no_held_out_question_is_of_it(forgetting):
    answers = {r["instruction"]: r["output"] for r in forgetting.narrow_rows()}
    assert answers["What is the opposite of crooked?"] == "straight"
    assert all(a.isalpha() for a in answers.values())
    asked = read(held_out_path())
    assert len(asked) == 414 and forgetting.NARROW not in {q["kind"] for q in asked}
    assert not any(q["answer"].isascii() and q["answer"].isalpha() for q in asked)


def test_the_table_says_what_of_the_drop_came_back(forgetting, monkeypatch, capsys):
    left = {None: (0.1, 1.0), 0.1: (0.8, 0.98)}
    monkeypatch.setattr(forgetting, "measure", lambda model: (0.9, 0.0))
    monkeypatch.setattr(forgetting, "forget", lambda start, folder, seed, share: left[share])
    monkeypatch.setattr("sys.argv", ["forgetting", "--start", "anything", "--seeds", "7"])
    forgetting.main()
    said = capsys.readouterr().out
    assert "before: held-out 90.0%, opposites in a word 0.0%" in said
    assert said.splitlines()[-1] == "| 7 | 10.0% | 80.0% | 88% | 100.0% | 98.0% |"


def test_both_shares_are_asked_of_the_model(forgetting, monkeypatch):
    known = [forgetting.Question("What does a horse eat?", "no"), forgetting.Question("What is 1+5?", "no")]
    monkeypatch.setattr(forgetting, "read_questions", lambda path: known)
    monkeypatch.setattr(forgetting, "narrow_rows", lambda: [{"instruction": "What is big?", "output": "no"}])
    assert forgetting.measure("builtin") == (0.0, 0.0)
    monkeypatch.setattr("bench.held_out.score", lambda *given: (type("Score", (), {"exact_match": len(given[3])}), []))
    assert forgetting.measure("builtin") == (2, 1)
