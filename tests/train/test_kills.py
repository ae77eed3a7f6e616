"""`kill -9` and `--resume`, again and again: the weights, the optimizer and the metrics of a run that never stopped.

The runs have everything in them that could keep a state of its own: several packs an update, dropout, NEFTune, a second
source with a share, shuffling, three epochs, dropped rows and validation in between.
"""

from __future__ import annotations

import json
import random
import signal
import time

import fresh
import pytest

CLOCK = ("seconds", "tokens_per_second", "rollout_seconds", "reward_seconds", "collection_seconds")
WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "sky")


class Victim:
    """A run in processes of its own that are killed, and the whole run beside it that is not."""

    def __init__(self, folder, tiny, method: str):
        rows = [{"instruction": f"say {a} then {b}", "output": "" if a == b == "red" else f"{a} {b}."}
                for a in WORDS for b in WORDS]
        main, replay, held = folder / "rows.jsonl", folder / "replay.jsonl", folder / "held.jsonl"
        main.write_text("".join(json.dumps(r) + "\n" for r in rows[:96]))
        replay.write_text("".join(json.dumps({"text": f"the {a} of the {b}"}) + "\n" for a in WORDS for b in WORDS[:3]))
        held.write_text("".join(json.dumps(r) + "\n" for r in rows[96:112]))
        adapters = ["--lora_dropout", "0.2"]
        per_method = {"full": ["--dtype", "bfloat16"], "lora": ["--dtype", "float32", *adapters], "qlora": adapters}
        self.folder, self.log = folder, folder / "log"
        self.asked = ["sft", "--model", str(tiny), "--data", str(main), "--data", f"{replay}@0.2", "--eval_data",
                      str(held), "--eval_steps", "3", "--method", method, "--batch_size", "16",
                      "--num_train_epochs", "3", "--learning_rate", "3e-3", "--pack_tokens", "128", "--max_length",
                      "64", "--save_steps", "2", "--max_lost", "0.2", "--neftune_noise_alpha", "5", *per_method[method]]

    def start(self, name: str, point: str = "", resume: bool = False):
        """The run in a process of its own, killed at a fault point if one is named."""
        return fresh.start(fresh.posttrain, *self.asked, "--output_dir", self.folder / name, *["--resume"] * resume,
                           log=self.log, POSTTRAIN_FAULT=point)

    def run(self, name: str, point: str = "", resume: bool = False) -> int:
        process = self.start(name, point, resume)
        process.join(120)
        return process.exitcode

    def killed_at(self, points: list[str]) -> None:
        """Start and go on until each point has killed once, then to the end, and compare with the whole run."""
        assert self.run("whole") == 0, self.said()
        for point in points:
            assert self.run("run", point, resume=True) == -signal.SIGKILL, f"{point}: {self.said()}"
        assert self.run("run", resume=True) == 0, self.said()
        self.same()

    def said(self) -> str:
        return fresh.said(self.log)

    def same(self) -> None:
        """Every file but those that hold the time: the model and the last checkpoint to the byte."""
        whole, run = self.folder / "whole", self.folder / "run"
        for file in (*whole.glob("model/*.safetensors"), *whole.glob("checkpoints/*/*.safetensors")):
            other = run / file.relative_to(whole)
            assert other.read_bytes() == file.read_bytes(), file.name
        assert len(list(whole.glob("checkpoints/*/optimizer.safetensors"))) == 2
        for name in ("ledger.json", "rejected.jsonl"):
            assert (run / name).read_bytes() == (whole / name).read_bytes()
        lines = [[{k: v for k, v in json.loads(line).items() if k not in CLOCK}
                  for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (whole, run)]
        assert lines[0] == lines[1] and [line["step"] for line in lines[0]] == list(range(1, len(lines[0]) + 1))
        assert not list(run.glob("checkpoints/.*"))


@pytest.fixture
def victim(tmp_path, make_model):
    def make(method: str) -> Victim:
        return Victim(tmp_path, make_model("dropping", attention_dropout=0.1), method)
    return make


@pytest.mark.parametrize(("method", "points"), [("full", ["update:2", "save.optimizer:2"]), ("lora", ["update:4"])])
def test_three_kills_change_nothing(victim, method, points):
    """Before the first checkpoint, inside a save, and in the middle of an update."""
    victim(method).killed_at(points)


BEFORE = ["update:1", "metrics:1", "save.weights:1", "save.manifest:1"]  # none has left a checkpoint
INSIDE = ["save.weights:2", "save.optimizer:1", "save.state:2", "save.manifest:1", "save.renamed:1", "save.pruned:1",
          "save.pruned:2"]
AMID = ["update:1", "metrics:1", "update:3", "metrics:2", "update:2", "save.weights:1", "metrics:4", "save.optimizer:2",
        "update:1"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_twenty_kills_change_nothing(victim, method):
    """At 20 exact points and at up to 6 moments that nobody chose."""
    if method == "qlora":
        pytest.importorskip("bitsandbytes")
    run = victim(method)
    assert run.run("whole") == 0, run.said()
    for point in [*BEFORE, *INSIDE, *AMID]:
        assert run.run("run", point, resume=True) == -signal.SIGKILL, f"{point}: {run.said()}"
    moment = random.Random(method)
    for _ in range(6):
        process = run.start("run", resume=True)
        time.sleep(moment.uniform(0.1, 3))
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0), run.said()
    assert run.run("run", resume=True) == 0, run.said()
    run.same()
