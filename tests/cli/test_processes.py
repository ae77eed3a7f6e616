"""Whole runs in two processes, started by the command: signals, a killed process, restarts. Minutes, so slow."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

from posttrain.app.run import Run

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tiny_model, rows, tmp_path):
    """Start `posttrain sft` in two processes -> Popen; flags are added to these."""
    def run(*flags, folder="run", resume=False, steps=60, processes=2) -> subprocess.Popen:
        argv = ["sft", "--output_dir", tmp_path / folder, *(["--resume"] if resume else [
            "--model", tiny_model, "--dtype", "float32", "--max_steps", steps, "--batch_size", "4", "--save_steps",
            "5", *(["--data", rows] if "--data" not in flags else [])]), "--processes", processes, *flags]
        return subprocess.Popen([sys.executable, "-m", "posttrain", *map(str, argv)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)
    return run


def worker(process: subprocess.Popen, rank: int) -> psutil.Process:
    """The process of this rank under the command."""
    for child in psutil.Process(process.pid).children():
        if child.environ().get("RANK") == str(rank) and "posttrain" in child.cmdline():
            return child
    raise AssertionError("no such process")


def reached(folder, updates: int) -> None:
    metrics, until = folder / "metrics.jsonl", time.monotonic() + 300
    while not (metrics.is_file() and metrics.read_text().count("\n") >= updates):
        assert time.monotonic() < until
        time.sleep(0.005)


def weights(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((folder / "model").glob("*.safetensors"))}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_killed_process(start, tmp_path, method):
    """Without restarts: one error that names it, and a resume. With one: the run ends as if nothing had been."""
    whole = start("--method", method, folder="whole")
    assert whole.wait(300) == 0, whole.communicate()
    lost = start("--method", method)
    reached(tmp_path / "run", 12)
    worker(lost, 1).send_signal(signal.SIGKILL)
    out, err = lost.communicate(timeout=300)
    assert lost.returncode == 2 and "Traceback" not in out + err
    assert [line for line in err.splitlines() if line.startswith("error:")] == ["error: a process of this run was lost"]
    assert "process 1" in err and "killed by SIGKILL" in err and "--resume`: the last checkpoint is good" in err
    again = start(resume=True)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0 and "resumed from" in out, out + err
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")

    healed = start("--method", method, "--max_restarts", "1", folder="healed")
    reached(tmp_path / "healed", 12)
    worker(healed, 0).send_signal(signal.SIGKILL)
    out, err = healed.communicate(timeout=300)
    assert healed.returncode == 0 and "start 2, from the last checkpoint" in out, out + err
    assert weights(tmp_path / "healed") == weights(tmp_path / "whole")
    assert [m["loss"] for m in Run(tmp_path / "healed").metrics] == [m["loss"] for m in Run(tmp_path / "whole").metrics]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_after_the_same_update(start, tmp_path, number, code):
    run = start()
    reached(tmp_path / "run", 7)
    run.send_signal(number)
    out, err = run.communicate(timeout=300)
    assert run.returncode == code, out + err
    assert f"go on with: posttrain sft --output_dir {tmp_path / 'run'} --resume" in out and "Traceback" not in err
    kept = Run(tmp_path / "run")
    assert int(kept.checkpoints[-1].name) == len(kept.metrics) < 60 and kept.status["status"] == "interrupted"


def test_an_error_is_told_once(start, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": ""}\n' * 20)
    run = start("--data", bad)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 2 and err.count("error:") == 1, out + err
    assert "the data worker" not in err and "Traceback" not in out + err


@pytest.mark.parametrize("cause", ["rows", "numbers"])
def test_an_error_that_would_come_again_is_not_tried_again(start, tmp_path, cause):
    """Before the first update and in the midst of the run: one error, whatever max_restarts is."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": ""}\n' * 20)
    run = start("--max_restarts", "2", *(["--data", bad] if cause == "rows" else [
        "--method", "full", "--learning_rate", "1e30", "--max_grad_norm", "1e30"]))
    out, err = run.communicate(timeout=300)
    assert run.returncode == 2 and err.count("error:") == 1, out + err
    assert "was lost" not in out + err and "Traceback" not in out + err
    assert (tmp_path / "run").exists() == (cause == "numbers")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent is gone")
def test_a_killed_launcher_takes_its_processes_along(start, tmp_path):
    whole = start(folder="whole")
    assert whole.wait(300) == 0, whole.communicate()
    run = start()
    reached(tmp_path / "run", 12)
    workers = [worker(run, rank) for rank in (0, 1)]
    second = start(resume=True)
    _, err = second.communicate(timeout=300)
    assert second.returncode == 2 and err.count("error:") == 1, err
    assert "the output folder is in use" in err and f"process {workers[0].pid} on " in err
    run.send_signal(signal.SIGKILL)
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
    again = start(resume=True)
    out, err = again.communicate(timeout=300)
    assert again.returncode == 0 and "resumed from" in out, out + err
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_from_two_processes_to_one_and_back(start, tmp_path):
    """Equal to rounding: the sums are taken in another order, and the run says so."""
    for method in ("lora", "full"):
        whole = start("--method", method, steps=12, folder=f"{method}-whole")
        assert whole.wait(300) == 0, whole.communicate()
        ends = load_file(next((tmp_path / f"{method}-whole" / "model").glob("*.safetensors")))
        for first, then in ((2, 1), (1, 2)):
            name = f"{method}-{first}-{then}"
            run = start("--method", method, steps=12, processes=first, folder=name)
            reached(tmp_path / name, 6)
            run.send_signal(signal.SIGTERM)
            assert run.wait(300) in (143, 0)
            refused = start(processes=then, folder=name, resume=True)
            _, err = refused.communicate(timeout=300)
            assert refused.returncode == 2 and "the layout changed since the checkpoint" in err and "processes" in err
            again = start("--allow_changes", processes=then, folder=name, resume=True)
            out, err = again.communicate(timeout=300)
            assert again.returncode == 0 and "resumed from" in out, out + err
            made = load_file(next((tmp_path / name / "model").glob("*.safetensors")))
            for key, value in ends.items():
                assert (made[key].double() - value.double()).norm() <= 1e-4 * value.double().norm() + 1e-6, key


@pytest.mark.parametrize(("verb", "flags"), [("ppo", ("--max_steps", "12")),
                                             ("grpo", ("--max_steps", "6", "--num_generations", "2"))])
def test_answers_are_sampled_in_two_processes(tiny_model, rows, tmp_path, verb, flags):
    """The same run as in one; the last of its three collections has one prompt, so one process has nothing to do."""
    (reward := tmp_path / "fn.py").write_text(
        "def score(prompts, answers, rows):\n    return [a.count('e') - 0.1 * len(a) for a in answers]\n")
    for processes in ("1", "2"):
        argv = [verb, "--model", tiny_model, "--data", f"{rows}[#17]", "--batch_size", "8", "--minibatches", "2",
                "--max_new_tokens", "8", "--max_length", "64", "--dtype", "float32", "--device", "cpu", "--reward",
                f"{reward}:score", "--output_dir", tmp_path / processes, "--processes", processes, *flags]
        done = subprocess.run([sys.executable, "-m", "posttrain", *map(str, argv)], capture_output=True, text=True,
                              timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    one, two = (Run(tmp_path / processes) for processes in ("1", "2"))
    for name in ("loss", "reward", "kl", "entropy", "answer_tokens", "ratio"):
        assert [m[name] for m in two.metrics] == pytest.approx([m[name] for m in one.metrics], rel=1e-3, abs=1e-5), name
    mine, theirs = (load_file(run.model_path / "adapter_model.safetensors") for run in (one, two))
    for key, value in mine.items():
        assert (theirs[key] - value).norm() <= 1e-4 * value.norm() + 1e-7, key
