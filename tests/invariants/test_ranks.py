"""How rows are dealt over processes changes nothing but the last bits: one process against two, through gloo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import fresh
import of_two
import pytest
import torch
from safetensors.torch import load_file

import posttrain
from posttrain.app.run import Run
from posttrain.model.checkpoint import load_checkpoint

METHODS = ("full", "lora")
CLOSE = {"float64": 1e-9, "float32": 1e-5}


def cut_back(folder: Path, to: Path) -> None:
    """A copy of a run as if it had been killed after its checkpoint 2."""
    shutil.copytree(folder, to)
    shutil.rmtree(to / "model")
    (to / "run.json").write_text(json.dumps({"status": "running", "step": 3}))
    assert [p.name for p in (to / "checkpoints").iterdir()] == ["2"]


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_model, rows):
    """The folder in which two processes have left all that of_two.py makes, beside what this one made alone."""
    work = tmp_path_factory.mktemp("work")
    shutil.copytree(tiny_model, work / "model")
    shutil.copy(rows, work / "rows.json")
    for method in METHODS:
        of_two.train(work, f"alone-{method}", method=method)
        cut_back(work / f"alone-{method}", work / f"onto-two-{method}")
    processes = fresh.start_two(of_two.main, work, log=work / "log")
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 7], fresh.said(work / "log")
    for method in METHODS:
        cut_back(work / f"two-{method}", work / f"onto-one-{method}")
        of_two.train(work, f"onto-one-{method}", resume=True, allow_changes=True)
    return work


@pytest.fixture(scope="module")
def results(work):
    """(alone, process 0 of two, process 1 of two), each by name of the combination."""
    return of_two.everything(), *(json.loads((work / f"found.{rank}").read_text()) for rank in (0, 1))


@pytest.mark.parametrize("kind", ["full", "lora", "sharded"])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rows_of", of_two.ROWS)
def test_ranks_change_nothing(results, kind, dtype, rows_of):
    alone, first, second = (found[f"{kind} {dtype} {rows_of}"] for found in results)
    assert first == second, "both processes hold the same sums and the same weights"
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=CLOSE[dtype]), name
    assert alone["loss 1"] != alone["loss 2"]


@pytest.mark.parametrize("kind", ["lora", "sharded"])
@pytest.mark.parametrize("name", of_two.PREFERENCES)
def test_ranks_change_nothing_of_what_learns_from_preferences(results, kind, name):
    alone, first, second = (found[f"{kind} {name}"] for found in results)
    assert first == second and alone["norm"] > 0
    assert first == pytest.approx(alone, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", of_two.SAMPLED)
def test_ranks_change_nothing_of_what_learns_from_its_own_answers(results, kind):
    """The same answers, scores, statistics and weights, whichever process samples and trains which of them."""
    alone, first, second = (found[f"sampled {kind}"] for found in results)
    assert first == second and alone["1.0 kl"] != 0
    assert first == pytest.approx(alone, rel=1e-7, abs=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("way", ["two", "onto-two", "onto-one"])
def test_a_run_in_two_processes_is_the_run(work, method, way):
    """A whole run, and one that goes on with another number of processes: the same to rounding, the ledger exactly."""
    alone, other = Run(work / f"alone-{method}"), Run(work / f"{way}-{method}")
    assert other.ledger == alone.ledger and other.status["held_out_rows"] == alone.status["held_out_rows"] == 14
    for a, b in zip(alone.metrics, other.metrics, strict=True):
        assert b == pytest.approx(a | {key: b[key] for key in ("seconds", "tokens_per_second")}, rel=2e-5)
    mine, theirs = (load_file(next(run.model_path.glob("*.safetensors"))) for run in (alone, other))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert (theirs[name] - tensor).norm() <= 1e-4 * tensor.norm() + 1e-7, name


def test_a_sharded_checkpoint_is_half_a_model_each_and_opens_as_a_model(work):
    path = work / "two-full" / "checkpoints" / "2"
    names = {p.name for p in path.iterdir()}
    shares = {f"{part}.{n}-of-2.safetensors" for part in ("weights", "optimizer") for n in (1, 2)}
    assert names == {"manifest.json", "state.json"} | shares
    assert set(json.loads((path / "manifest.json").read_text())["files"]) == names - {"manifest.json"}
    sizes = [(path / f"weights.{n}-of-2.safetensors").stat().st_size for n in (1, 2)]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sizes[0]
    whole, shares = (load_checkpoint(work / name / "checkpoints" / "2")[0] for name in ("alone-full", "two-full"))
    for name in whole["weights"]:
        assert torch.allclose(shares["weights"][name], whole["weights"][name], rtol=1e-4, atol=1e-6), name
    assert isinstance(posttrain.load(path).chat("say red then blue", max_new_tokens=3), str)


@pytest.fixture(scope="module")
def refused(work):
    """What two processes said of the same trouble, by its name."""
    first, second = (json.loads((work / f"refused.{rank}").read_text()) for rank in (0, 1))
    assert first.keys() == second.keys() == {"row-lora", "row-full", "disk", "code"}
    return first, second


@pytest.mark.parametrize("method", METHODS)
def test_the_row_that_is_no_number_is_found_whichever_process_has_it(work, refused, method):
    first, second = (found[f"row-{method}"] for found in refused)
    assert first == second and "the gradient of update 1 is not finite" in first
    assert f"where:    {work}/rows.json:22\n" in first and "1 of its 7 rows do it alone" in first
    run = work / f"row-{method}"
    [line] = [json.loads(line) for line in (run / "offending_rows.jsonl").read_text().splitlines()]
    assert line["line"] == 22 and 0 < line["loss"] < 20 and line["grad_norm"] == "nan"
    assert not list(run.glob("offending_rows.*.jsonl"))


def test_a_full_disk_under_one_share_is_one_error_for_all(work, refused):
    for said in refused[0]["disk"], refused[1]["disk"]:
        assert said.startswith(f"error: no space left on the disk\n  where:    {work}/disk/checkpoints/2\n")
    assert not list((work / "disk" / "checkpoints").iterdir())


def test_processes_that_are_not_alike_stop_before_an_update(work, refused):
    for rank, said in enumerate(found["code"] for found in refused):
        assert said.startswith("error: the processes of this run are not alike\n  where:    code\n")
        assert f"found:    process {rank} has code " in said and "the same posttrain and libraries" in said
    assert not (work / "code").exists()


def test_a_lost_process_is_noticed(work):
    said = (work / "lost.txt").read_text()
    assert said.startswith("error: a process of this run was lost\n  where:    noticed by process 0 of 2\n")
    assert "go on with resume: the last checkpoint is good" in said
