"""An objective that makes several updates of each batch of rows: steps, lines, saving and resume."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

import posttrain
from posttrain.train.objectives import OBJECTIVES
from posttrain.train.objectives.sft import SFT

pytestmark = pytest.mark.usefixtures("in_process")


class Thrice(SFT):
    """Each batch three times, and of the second batch only twice."""

    updates = 3

    def __init__(self, *values):
        super().__init__(*values)
        self.state = {"batches": 0}
        self.facts, self.samples = {}, []

    def collect(self, packs, models):
        self.facts = {"batch": self.state["batches"]}
        self.samples = [{"answer": f"of batch {self.state['batches']}"}]
        for _ in range(2 if self.state["batches"] == 1 else 3):
            yield packs
        self.state = {"batches": self.state["batches"] + 1}

    def validate(self, held, models):
        return {"eval_loss": float(self.state["batches"]), "eval_reward": 1.0}


@pytest.fixture
def train(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "sft", Thrice)

    def run(name="run", **values):
        return posttrain.sft(**({"model": tiny_model, "data": str(rows), "batch_size": 8, "dtype": "float32",
                                 "num_train_epochs": 0.2, "eval_split": 0.05, "save_steps": 4, "save_total_limit": 9,
                                 "output_dir": tmp_path / name} | values))
    return run


def test_a_step_is_one_optimizer_update(train):
    run = train()
    steps = [line["step"] for line in run.metrics]
    assert steps == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12], "what a batch leaves out is passed over"
    assert [line["batch"] for line in run.metrics] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [p.name for p in run.checkpoints] == ["6", "9"], "at the next end of a batch; none beside the model"
    assert [line["eval_loss"] for line in run.metrics if "eval_loss" in line] == [4.0]
    assert run.metrics[-1]["eval_reward"] == 1.0 and run.status["step"] == 12
    samples = [line for line in (run.path / "samples.jsonl").read_text().splitlines() if "of batch" in line]
    assert samples[1] == '{"step": 4, "answer": "of batch 1"}' and len(samples) == 4
    rates = [line["learning_rate"] for line in run.metrics]
    assert rates[1:] == sorted(rates[1:], reverse=True) and len(set(rates[1:])) == 10


def test_it_resumes_at_the_end_of_a_batch(train, tmp_path):
    whole = train()
    cut = tmp_path / "cut"
    shutil.copytree(whole.path, cut)
    shutil.rmtree(cut / "model")
    shutil.rmtree(cut / "checkpoints" / "9")
    (cut / "run.json").write_text('{"status": "running", "step": 8}')
    again = train(resume=True, output_dir=cut)
    assert [line["step"] for line in again.metrics] == [line["step"] for line in whole.metrics]
    assert [line["loss"] for line in again.metrics] == [line["loss"] for line in whole.metrics]
    assert (cut / "samples.jsonl").read_text() == (whole.path / "samples.jsonl").read_text()
    one, two = (load_file(run.model_path / "adapter_model.safetensors") for run in (again, whole))
    assert all(torch.equal(one[n], two[n]) for n in two)
