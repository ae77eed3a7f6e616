"""How the processes of a run ended, as its launcher says it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import posttrain
from posttrain.app.processes import judge
from posttrain.core.errors import UserError


def ended(*codes: int) -> dict[int, SimpleNamespace]:
    return {number: SimpleNamespace(exitcode=code) for number, code in enumerate(codes)}


def test_a_killed_process_is_told(tmp_path):
    with pytest.raises(UserError) as e:
        judge(ended(-15, -9), "sft", tmp_path)
    assert str(e.value) == (
        "error: a process of this run was lost\n  where:    process 1\n"
        "  found:    killed by SIGKILL (the system does that when memory runs out)\n"
        f"  fix:      go on with `posttrain sft --output_dir {tmp_path} --resume`: the last checkpoint is good; "
        "max_restarts does so by itself")


def test_what_a_process_told_itself_is_not_told_again(tmp_path):
    assert judge(ended(2, 2), "sft", tmp_path) == 2 and judge(ended(143, 143), "sft", tmp_path) == 143
    assert judge(ended(2, -15), "sft", tmp_path) == 2  # the launcher ended the other one


def test_processes_started_beside_each_other_need_one_folder(monkeypatch, rows):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError) as e:
        posttrain.sft(data=str(rows))
    assert "several processes need one run folder" in str(e.value) and "let --processes N start them" in str(e.value)
