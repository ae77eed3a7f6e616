"""Ctrl-C, SIGTERM and a full disk: what is kept, what is said, the exit code, and that a resume goes on exactly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import nullcontext

import fresh
import pytest

import posttrain
from posttrain.app.cli import main
from posttrain.app.run import Run
from posttrain.train import loop as training

ACCUMULATE = training.accumulate

pytestmark = pytest.mark.usefixtures("in_process_module")


@pytest.fixture(scope="module")
def argv(tiny_model, rows):
    return ["sft", "--model", str(tiny_model), "--data", str(rows), "--method", "full", "--dtype", "float32",
            "--max_steps", "6", "--batch_size", "8", "--learning_rate", "3e-3"]


@pytest.fixture
def sft(argv, tmp_path):
    """Run `posttrain sft` in this process on the tiny pair -> exit code; flags are added to these."""
    def run(*flags, folder=tmp_path / "run") -> int:
        return main([*argv, "--output_dir", str(folder), *flags])
    return run


@pytest.fixture(scope="module")
def whole(argv, tmp_path_factory, in_process_module):
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main([*argv, "--output_dir", str(folder)]) == 0
    return folder


@pytest.fixture
def during(monkeypatch):
    """Send signals to this process in the middle of one update's computation."""
    def arrange(step: int, *numbers: int) -> None:
        def accumulate(*given):
            if given[-1] == step:
                for number in numbers:
                    signal.raise_signal(number)
            return ACCUMULATE(*given)
        monkeypatch.setattr(training, "accumulate", accumulate)
    return arrange


def weights(folder) -> bytes:
    return (folder / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_after_the_update_with_a_checkpoint(sft, whole, during, tmp_path, capsys, number, code):
    handler = signal.getsignal(number)
    during(3, number)
    assert sft() == code
    run = tmp_path / "run"
    said = capsys.readouterr().out
    assert "stopping after this update (again: at once)" in said and "update 3/6" in said and "update 4/6" not in said
    assert f"stopped by {number.name} after update 3 of 6; checkpoint {run}/checkpoints/3" in said
    assert said.endswith(f"go on with: posttrain sft --output_dir {run} --resume\n")
    assert len(Run(run).metrics) == 3 and Run(run).status["status"] == "interrupted" and not (run / "model").exists()
    assert signal.getsignal(number) is handler

    during(99)
    assert main(["sft", "--output_dir", str(run), "--resume"]) == 0
    assert f"resumed from {run}/checkpoints/3 (update 3)" in capsys.readouterr().out
    assert weights(run) == weights(whole) and Run(run).ledger == Run(whole).ledger


def test_a_second_signal_stops_at_once(sft, during, tmp_path, capsys):
    during(3, signal.SIGINT, signal.SIGINT)
    assert sft("--save_steps", "2") == 130
    said = capsys.readouterr()
    assert said.err == "\ninterrupted\n"
    assert f"stopped at once; go on with: posttrain sft --output_dir {tmp_path / 'run'} --resume" in said.out
    run = Run(tmp_path / "run")
    assert len(run.metrics) == 2 and [p.name for p in run.checkpoints] == ["2"]
    assert run.status["status"] == "interrupted"
    during(99)
    assert main(["sft", "--output_dir", str(run.path), "--resume"]) == 0 and run.status["status"] == "finished"


def test_a_signal_in_the_last_update_changes_nothing(sft, during, tmp_path):
    during(6, signal.SIGINT)
    assert sft() == 0 and Run(tmp_path / "run").status["status"] == "finished"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_first_update_leaves_nothing(sft, tmp_path, capsys, monkeypatch, number, code):
    before = signal.getsignal(number)
    monkeypatch.setattr("posttrain.app.launch._open", lambda *given: signal.raise_signal(number))
    assert sft() == code and not (tmp_path / "run").exists()
    assert capsys.readouterr().err == "\ninterrupted\n" and signal.getsignal(number) is before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_model_is_written_keeps_what_was_learnt(sft, whole, tmp_path, capsys, monkeypatch, number,
                                                                   code):
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.train.session.export_model", lambda *given: signal.raise_signal(number))
        assert sft() == code
    run = Run(tmp_path / "run")
    said = capsys.readouterr().out
    assert said.endswith(f"stopped at once; go on with: posttrain sft --output_dir {run.path} --resume\n")
    assert [p.name for p in run.checkpoints] == ["6"] and not run.model_path.exists()
    assert main(["sft", "--output_dir", str(run.path), "--resume"]) == 0 and weights(run.path) == weights(whole)


def test_a_second_signal_stops_inside_a_save(sft, whole, during, tmp_path, capsys, monkeypatch):
    from posttrain.model import checkpoint

    real = checkpoint.save_file

    def save_file(held, path):
        real(held, path)
        if "/.4.partial/" in str(path):
            signal.raise_signal(signal.SIGTERM)

    during(4, signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", save_file)
        assert sft("--save_steps", "2") == 143
    run = tmp_path / "run"
    assert f"go on with: posttrain sft --output_dir {run} --resume" in capsys.readouterr().out
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["2"]
    during(99)
    assert main(["sft", "--output_dir", str(run), "--resume"]) == 0 and weights(run) == weights(whole)


def test_ctrl_c_in_a_terminal(tiny_model, rows, tmp_path):
    """The signal goes to every process of the group, as a terminal sends it: the data worker must not mind."""
    process = fresh.start(fresh.posttrain, "sft", "--model", tiny_model, "--data", rows, "--max_steps", 3000,
                          "--batch_size", 4, "--output_dir", tmp_path / "run", log=tmp_path / "log")
    metrics = tmp_path / "run" / "metrics.jsonl"
    until = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text().count("\n")) and time.monotonic() < until:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    out, err = ((tmp_path / name).read_text() for name in ("log.out", "log.err"))
    assert process.exitcode == 130, out + err
    assert f"go on with: posttrain sft --output_dir {tmp_path / 'run'} --resume" in out
    run = Run(tmp_path / "run")
    assert err == "" and int(run.checkpoints[-1].name) == len(run.metrics) < 3000
    assert isinstance(posttrain.load(run.checkpoints[-1]).chat("say red", max_new_tokens=4), str)


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives a folder on a disk of so many kilobytes; needs the right to mount."""
    folder, mounted = tmp_path / "small", []

    def make(kilobytes: int):
        folder.mkdir(exist_ok=True)
        if mounted:
            subprocess.run(["umount", folder], check=True)
            mounted.clear()
        if shutil.which("mount") is None or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("a small disk cannot be mounted here")
        mounted.append(folder)
        return folder / "run"
    yield make
    if mounted:
        subprocess.run(["umount", folder], check=True)


def test_no_space_left_in_a_save(sft, whole, small_disk, capsys, monkeypatch):
    """A checkpoint that does not fit leaves the one before it, and with more room the run goes on from there."""
    monkeypatch.setattr("posttrain.train.rehearsal.check_disk", lambda *given: 0)
    folder = small_disk(4000)  # three checkpoints of 1.3 MB, not four
    assert sft("--save_steps", "2", "--save_total_limit", "1", folder=folder) == 0
    shutil.rmtree(folder)
    assert sft("--save_steps", "1", "--save_total_limit", "9", folder=folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no space left on the disk\n") and "the last complete checkpoint is good" in said
    last = Run(folder).checkpoints[-1]
    assert last.name == "3" and not list((folder / "checkpoints").glob(".*"))
    for old in Run(folder).checkpoints[:-1]:
        shutil.rmtree(old)
    assert main(["sft", "--output_dir", str(folder), "--resume", "--save_total_limit", "1"]) == 0
    assert weights(folder) == weights(whole)


def test_a_disk_that_becomes_read_only(sft, whole, small_disk, during, monkeypatch, capsys):
    folder = small_disk(9000)

    def accumulate(*given):
        if given[-1] == 4:
            subprocess.run(["mount", "-o", "remount,ro", folder.parent], check=True)
        return ACCUMULATE(*given)

    with monkeypatch.context() as patch:
        patch.setattr(training, "accumulate", accumulate)
        # by hand no disk with a file open for writing becomes read-only; where it breaks the system does not ask
        patch.setattr("posttrain.app.folder._locked", nullcontext)
        assert sft("--save_steps", "2", folder=folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: the run folder cannot be written\n") and said.count("error:") == 1
    assert "make it writable and go on with resume" in said and [p.name for p in Run(folder).checkpoints] == ["2"]
    subprocess.run(["mount", "-o", "remount,rw", folder.parent], check=True)
    assert main(["sft", "--output_dir", str(folder), "--resume"]) == 0
    assert weights(folder) == weights(whole)


@pytest.mark.parametrize(("kilobytes", "what"), [(12, "tokenizer"), (64, "model"), (-24, "model")])
def test_no_space_left(sft, whole, small_disk, capsys, monkeypatch, kilobytes, what):
    """From the first file to the last one of the model folder: one clear error, and no half of a model."""
    monkeypatch.setattr("posttrain.train.rehearsal.check_disk", lambda *given: 0)  # it filled up after that look
    if kilobytes < 0:  # just less than the run needs: what does not fit is the tokenizer beside the weights
        used = sum(-(-p.stat().st_size // 4096) * 4 for p in whole.rglob("*")
                   if p.name != "report.html")  # which comes after the model
        kilobytes += used
    folder = small_disk(kilobytes)
    assert sft(folder=folder) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no space left on the disk\n") and said.count("error:") == 1
    assert f"where:    {folder}/{what}\n" in said and "GB free" in said and "make room" in said
    assert not (folder / "model").exists() and not list(folder.glob(".model*"))
