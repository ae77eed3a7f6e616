"""Shared fixtures: where the real data lies, a tiny model with its tokenizer, rows, and a loader without a process."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: a second thread would only wait
os.environ["COLUMNS"] = "100"  # what is printed is compared: no terminal decides on its lines

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "sky")


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk():
    """No test cuts the power, and a run would wait for the disk a dozen times."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real data beside the checkout; tests that need it are skipped where it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data (../shared/data) is not beside this checkout")
    return folder


def pairs() -> list[dict[str, str]]:
    return [{"instruction": f"say {a} then {b}", "input": "", "output": f"{a} {b}."} for a in WORDS for b in WORDS]


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """144 Alpaca rows."""
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(pairs(), indent=1), "utf-8")
    return path


@pytest.fixture(scope="session")
def make_model(tmp_path_factory):
    """A function that makes a folder with random weights (Qwen3 shape, 2 layers) and a byte-level tokenizer of some
    300 entries without a template; `shape` are keys of the config (vocab_size None: no row to spare)."""
    def make(name: str, **shape) -> Path:
        import torch
        from transformers import Qwen3Config, Qwen3ForCausalLM

        from posttrain.app.scratch import make_tokenizer

        folder = tmp_path_factory.mktemp("models") / name
        make_tokenizer((f"{p['instruction']} {p['output']} User: Assistant: 你好" for p in pairs()), 400, folder)
        config = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
                  "max_position_embeddings": 512, "initializer_range": 0.1} | shape
        if config["vocab_size"] is None:
            config["vocab_size"] = len(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"])
        torch.manual_seed(0)
        Qwen3ForCausalLM(Qwen3Config(**config)).save_pretrained(folder)
        return folder
    return make


@pytest.fixture(scope="session")
def tiny_model(make_model) -> Path:
    """512 embedding rows for some 300 tokens, tied, float32."""
    return make_model("tiny")


class InProcessLoader:
    """The loader's face over the same work in this process: a second less per run."""

    def __init__(self, settings):
        from posttrain.data.updates import Updates

        self.settings, self.work = settings, Updates(settings)
        self.opened, self.total = self.work.opened, self.work.opened.total
        self.updates_per_epoch = self.opened.updates_per_epoch

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def tokenizer(self, spec):
        from posttrain.data.render import rendering

        self.make = rendering(self.settings, spec)

    def judge(self):
        from posttrain.data.judge import check_lost

        head = self.work.head(self.make)
        check_lost(head.ledger, self.settings, head)
        return head

    def batches(self, start=0):
        return map(self.work.batch, range(start, self.total))

    def begin_files(self):
        pass

    def files(self):
        return self.work.files()

    def held_rows(self):
        return self.work.held_rows()


@pytest.fixture(scope="session")
def traced_once():
    """`Planner.phases` that traces what is equal in all that it reads once for all tests: a third of a short run."""
    from posttrain.train.plan import Planner

    found, real = {}, Planner.phases

    def phases(self, *asked):
        keys = self.settings
        read = (self.config.to_json_string(), self.dtype, self.cpu, self.needs, keys.longest, keys.lora_r,
                keys.lora_alpha, keys.lora_dropout, *keys.lora_target_modules, *asked)
        if read not in found:
            found[read] = real(self, *asked)
        return found[read]
    return phases


@pytest.fixture(scope="module")
def in_process_module(traced_once):
    """All runs of this file load their data in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("posttrain.data.loader.Loader", InProcessLoader)
        patch.setattr("posttrain.train.plan.Planner.phases", traced_once)
        yield


@pytest.fixture
def in_process(monkeypatch, traced_once):
    """Runs of this test load their data in this process."""
    monkeypatch.setattr("posttrain.data.loader.Loader", InProcessLoader)
    monkeypatch.setattr("posttrain.train.plan.Planner.phases", traced_once)
