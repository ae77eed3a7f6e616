"""Preferences in two processes are those in one: losses, figures, weights and the ledger, through gloo."""

from __future__ import annotations

import json
import shutil

import fresh
import pairs_of_two
import pytest
from safetensors.torch import load_file

from posttrain.app.run import Run


@pytest.fixture(scope="module")
def work(tmp_path_factory, tiny_model):
    work = tmp_path_factory.mktemp("pairs")
    shutil.copytree(tiny_model, work / "model")
    pairs_of_two.write_rows(work / "ranked.jsonl")
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", pairs_of_two.RUNS)
def test_two_processes_learn_what_one_does(work, name):
    processes = fresh.start_two(pairs_of_two.train, work, name, f"two-{name}", log=work / f"log-{name}-")
    pairs_of_two.train(work, name, f"alone-{name}")
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0], fresh.said(work / f"log-{name}-")
    alone, two = Run(work / f"alone-{name}"), Run(work / f"two-{name}")
    assert two.ledger == alone.ledger
    for a, b in zip(alone.metrics, two.metrics, strict=True):
        clock = {key: b[key] for key in ("seconds", "tokens_per_second")}
        assert b == pytest.approx(a | clock, rel=5e-5, abs=1e-6), (a["step"], name)
    mine, theirs = (load_file(next(run.model_path.glob("*.safetensors"))) for run in (alone, two))
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert (theirs[key] - tensor).norm() <= 1e-3 * tensor.norm() + 1e-6, key
    if name.startswith("reward"):
        mine, theirs = (json.loads((run.path / "reward.json").read_text()) for run in (alone, two))
        assert theirs["pairs"] == mine["pairs"] and theirs["accuracy"] == mine["accuracy"]
    if name in ("dpo-full", "kto-full"):
        kept = [load_file(run.path / "reference.safetensors") for run in (alone, two)]
        by_key = [{bytes(k): v for k, v in zip(f["keys"].tolist(), f["logprobs"].tolist(), strict=True)} for f in kept]
        assert by_key[1] == pytest.approx(by_key[0], rel=1e-5)
