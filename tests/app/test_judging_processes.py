"""How the processes of a run ended, as its launcher says it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import psutil
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


CHILD = """import os, time
from posttrain.app.stopping import end_with_launcher
if LATE:
    while os.getppid() == int(os.environ["POSTTRAIN_LAUNCHER"]):
        time.sleep(0.01)
end_with_launcher()
print(os.getpid(), flush=True)
time.sleep(600)
"""
LAUNCHER = """import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=os.environ | {"POSTTRAIN_LAUNCHER": str(os.getpid())})
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
@pytest.mark.parametrize("late", [False, True])
def test_a_process_ends_with_its_launcher(late):
    """However that ended, and even where it did so before the process could ask for it."""
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, CHILD.replace("LATE", str(late))],
                                stdout=subprocess.PIPE, text=True)
    child = psutil.Process(int(launcher.stdout.readline()))
    if not late:
        assert int(launcher.stdout.readline()) == child.pid
    os.kill(launcher.pid, signal.SIGKILL)
    launcher.wait()
    until = time.monotonic() + 30
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.01)
    assert late is False or launcher.stdout.read() == ""  # it ended before it went on
    launcher.stdout.close()
