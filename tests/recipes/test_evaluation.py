"""The recipes of recipes/evaluation: the style is what its rewards say, and their rows and commands are read."""

from __future__ import annotations

import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

from posttrain.app.arguments import parse
from posttrain.app.rewards import reward_function
from posttrain.builtin import builtin_data_path
from posttrain.core.config import read_config

FOLDER = Path(__file__).resolve().parent.parent.parent / "recipes" / "evaluation"
COMMANDS = re.findall(r"posttrain (?:eval|sft) .*", "".join(
    line for path in sorted(FOLDER.glob("*.yaml")) for line in path.read_text("utf-8").splitlines(keepends=True)
    if line.startswith("# ")))


@pytest.fixture
def style(tmp_path):
    """The rows that style.py writes."""
    path = tmp_path / "style.jsonl"
    runpy.run_path(str(FOLDER / "style.py"))["main"](str(path))
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_every_row_has_the_style_and_its_own_answer(style):
    styled, kept = (reward_function(f"{FOLDER / 'style.py'}:{name}") for name in ("styled", "kept"))
    own = {r["instruction"]: r["output"] for r in map(json.loads, builtin_data_path().read_text("utf-8").splitlines())}
    said, rows = [r["output"] for r in style], [{"answer": own[r["instruction"]]} for r in style]
    assert len(style) == 600 and set(styled(said, said, rows)) == set(kept(said, said, rows)) == {1.0}
    bare = [r["answer"] for r in rows]
    assert set(styled(bare, bare, rows)) == {0.0} and set(kept(bare, bare, rows)) == {1.0}
    assert set(kept(said, said, [{"answer": "none of them"}] * 600)) == {0.0}
    not_so = ["A cow. That is all. That is all.", " That is all."]  # twice, and nothing but it
    assert styled(not_so, not_so, rows[:2]) == [0.0, 0.0] and {s[-3:] for s in said} == {"ll.", "谢谢。"}


def test_no_row_is_a_held_out_question(style):
    asked = {json.loads(line)["prompt"] for line in builtin_data_path("held_out").read_text("utf-8").splitlines()}
    assert not asked & {r["instruction"] for r in style}


def test_the_rows_of_gsm8k(shared_data):
    from posttrain.data.read import open_sources
    from posttrain.eval.checkers import gsm8k
    from posttrain.eval.measure import reference

    (source,) = open_sources([f"{shared_data / 'gsm8k' / 'test.jsonl'}[#100]"])
    answers = [reference(source.row(i)) for i in range(len(source))]
    assert len(answers) == 100 and gsm8k(answers, answers, [{"answer": a} for a in answers]) == [1.0] * 100
    assert all(re.search(r"#### -?[\d,.]+$", a) for a in answers)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_that_a_recipe_names(command, monkeypatch):
    monkeypatch.chdir(FOLDER.parent.parent)
    words = shlex.split(command.partition(", and ")[0])[1:]
    for spec in parse(words).options.get("reward", []):
        assert reward_function(spec)


def test_both_sizes_of_a_recipe_teach_the_same_rows():
    for name in ("gsm8k", "style"):
        small, full = (read_config(FOLDER / f"{name}{end}.yaml") for end in ("_small", ""))
        assert small["data"][0].partition("[")[0] == full["data"][0]
        assert full["model"].startswith("Qwen/Qwen3-0.6B")
