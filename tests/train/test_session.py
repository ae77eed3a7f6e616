"""Whole runs from Python: the files they leave, what they learn, and that a resumed run is the run."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec

import pytest
from safetensors.torch import load_file

import posttrain
from posttrain.app.run import Run
from posttrain.core.config import make_settings, read_config
from posttrain.core.errors import SettingsError, UserError
from posttrain.train.record import Record
from posttrain.train.session import set_determinism

KEYS = ["step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "tokens_per_second",
        "seconds"]
CLOCK = ("tokens_per_second", "seconds")
WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "sky")
METHODS = ("full", "lora", pytest.param("qlora", marks=pytest.mark.skipif(
    not find_spec("bitsandbytes"), reason="pip install 'posttrain[qlora]'")))

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def train(tiny_model, rows, tmp_path):
    """A short run on the tiny pair; `values` are keys over these."""
    def run(name="run", **values) -> Run:
        asked = {"model": tiny_model, "data": str(rows), "max_steps": 6, "batch_size": 8, "dtype": "float32",
                 "learning_rate": 3e-3, "output_dir": tmp_path / name}
        return posttrain.sft(**(asked | values))
    return run


def weights(run: Run) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(run.model_path.glob("*.safetensors"))}


def timeless(run: Run) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in run.metrics]


def cut_back(run: Run, step: int, tmp_path) -> str:
    """A copy of a run as it lay on disk just after its checkpoint `step`, killed one update later."""
    folder = tmp_path / f"cut{step}"
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "model")
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:step + 1]) + '{"step": 99, "lo')
    (folder / "run.json").write_text(json.dumps({"status": "running", "step": step + 1}))
    return str(folder)


@pytest.mark.parametrize("method", METHODS)
def test_the_folder_of_a_run(train, method):
    run = train(method=method)
    made = {p.name for p in run.path.iterdir()}
    assert made == {"config.yaml", "ledger.json", "metrics.jsonl", "rejected.jsonl", "run.json", "tokenizer", "model",
                    "masks.jsonl", "report.html"}
    plain = {"config.json", "model.safetensors"}
    peft = {"adapter_config.json", "adapter_model.safetensors", "base.json"}
    assert {p.name for p in run.model_path.iterdir()} == (plain if method == "full" else peft) | {
        "README.md", "chat_template.jinja", "generation_config.json", "tokenizer.json", "tokenizer_config.json"}
    assert (run.path / "rejected.jsonl").read_text() == ""
    assert run.status["status"] == "finished" and run.status["step"] == 6 and run.status["model"] == "model"


def test_metrics_have_these_keys_and_no_others(train):
    run = train(eval_split=0.1, eval_steps=4)
    assert [line["step"] for line in run.metrics] == [1, 2, 3, 4, 5, 6]
    for line in run.metrics:
        validated = line["step"] in (4, 6)  # every four, and the last
        assert list(line) == KEYS + ["eval_loss", "eval_stops"] * validated
        assert line["tokens_per_second"] == pytest.approx(line["tokens"] / line["seconds"])
        assert 0 < line["trained_tokens"] < line["tokens"] and line["grad_norm"] > 0
    assert run.status["eval_loss_before"] > run.status["eval_loss"] == run.metrics[-1]["eval_loss"]


def test_each_source_is_in_the_log(train, rows, tmp_path):
    old = tmp_path / "old.jsonl"
    old.write_text("".join(json.dumps({"text": f"once upon a time {i}"}) + "\n" for i in range(9)))
    run = train(data=[rows, f"{old}@0.25"], max_steps=3)
    for line in run.metrics:
        assert list(line) == KEYS[:5] + [f"loss/{rows}", f"loss/{old}@0.25"] + KEYS[5:]
        low, high = sorted((line[f"loss/{rows}"], line[f"loss/{old}@0.25"]))
        assert low < line["loss"] < high


def test_the_ledger_has_this_shape_and_balances(train, tmp_path):
    data = [{"instruction": f"q{i}", "output": "" if i % 10 == 3 else "the answer " + "long " * (i % 7)}
            for i in range(40)]
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    run = train(data=path, max_steps=None, num_train_epochs=2, max_lost=0.2, max_length=64)
    ledger = json.loads((run.path / "ledger.json").read_text())
    assert list(ledger) == ["rows", "tokens"] and list(ledger["rows"]) == ["read", "trained", "cut", "dropped"]
    assert list(ledger["tokens"]) == ["rendered", "trained", "masked", "cut", "dropped"]
    assert ledger["rows"] == {"read": 80, "trained": 72, "cut": 0, "dropped": {"empty answer": 8}}
    tokens = ledger["tokens"]
    assert tokens["rendered"] == tokens["trained"] + tokens["masked"] + tokens["cut"] + tokens["dropped"]
    assert tokens["dropped"] > 0 and tokens["trained"] == sum(m["trained_tokens"] for m in run.metrics)
    assert tokens["trained"] + tokens["masked"] == sum(m["tokens"] for m in run.metrics)
    listed = [json.loads(line) for line in (run.path / "rejected.jsonl").read_text().splitlines()]
    assert sorted((r["file"], r["line"]) for r in listed) == [(str(path), n) for n in (4, 14, 24, 34)]
    assert {r["reason"] for r in listed} == {"empty answer"}


@pytest.mark.parametrize(("method", "rate"), [("full", 3e-3), ("lora", 1e-2), ("qlora", 1e-2)])
def test_a_toy_is_learnt(train, tmp_path, method, rate):
    path = tmp_path / "toy.json"
    answers = dict(zip(WORDS, WORDS[5:] + WORDS[:5], strict=True))
    path.write_text(json.dumps([{"prompt": a, "completion": b} for a, b in answers.items()]))
    run = train(data=path, eval_data=[path], method=method, learning_rate=rate, max_steps=60, batch_size=12)
    assert run.metrics[0]["loss"] > 5 and run.status["eval_loss"] < (0.1 if method == "full" else 1)
    right = sum(run.chat(a, max_new_tokens=8) == b for a, b in answers.items())
    assert right == 12 if method == "full" else right > 3


def test_lora_leaves_the_base_as_it_was(train, tiny_model):
    before = {p.name: p.read_bytes() for p in tiny_model.iterdir()}
    run = train(method="lora")
    assert {p.name: p.read_bytes() for p in tiny_model.iterdir()} == before
    named = json.loads((run.model_path / "adapter_config.json").read_text())
    assert named["base_model_name_or_path"] == str(tiny_model)
    names = set(load_file(run.model_path / "adapter_model.safetensors"))
    assert names and all("lora_A" in n or "lora_B" in n for n in names)


@pytest.mark.parametrize("method", METHODS)
def test_the_resolved_file_gives_the_same_bits(train, tmp_path, method):
    run = train(method=method, pack_tokens="auto", learning_rate=None, lora_dropout=0.1 * (method != "full"))
    config = read_config(run.path / "config.yaml")
    assert isinstance(config["pack_tokens"], int) and config["learning_rate"] and config["template_date"]
    again = posttrain.sft(**config | {"output_dir": tmp_path / "again"})
    assert weights(again) == weights(run) and timeless(again) == timeless(run) and again.ledger == run.ledger
    assert read_config(again.path / "config.yaml") == config | {"output_dir": str(tmp_path / "again")}


def test_eval_data_is_judged_and_never_trained(train, rows, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps({"instruction": f"held {i}", "output": "never seen"}) + "\n" for i in range(5)))
    with_it, without = train("with", eval_data=[held], eval_steps=2), train("without")
    assert weights(with_it) == weights(without) and with_it.ledger == without.ledger
    assert [m["step"] for m in with_it.metrics if "eval_loss" in m] == [2, 4, 6]


def test_eval_split_takes_its_rows_from_training(train):
    run = train(eval_split=0.25, max_steps=None, num_train_epochs=1)
    assert run.ledger["rows"]["read"] == 108


def test_checkpoints_are_kept_to_the_limit(train):
    run = train(save_steps=1, save_total_limit=3)
    assert [p.name for p in run.checkpoints] == ["3", "4", "5"]  # the sixth is the model itself
    names = {p.name for p in run.checkpoints[-1].iterdir()}
    assert names == {"manifest.json", "optimizer.safetensors", "state.json", "weights.safetensors"}


RUNS = {
    "full": {"method": "full"},
    "lora": {"method": "lora", "lora_dropout": 0.2},
    "packs": {"method": "full", "pack_tokens": 64, "max_length": 64, "dtype": "bfloat16",
              "neftune_noise_alpha": 5.0},
    "epochs": {"max_steps": None, "num_train_epochs": 2, "batch_size": 48, "lora_dropout": 0.1},
    "recompute": {"gradient_checkpointing": True, "lora_dropout": 0.2},
    "validated": {"eval_split": 0.1, "eval_steps": 2},
    "qlora": {"method": "qlora", "lora_dropout": 0.2, "dtype": "bfloat16", "eval_split": 0.1, "eval_steps": 2},
    "dora": {"method": "qlora", "use_dora": True, "gradient_checkpointing": True, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("values", RUNS.values(), ids=RUNS)
def test_a_resumed_run_is_the_run(train, tmp_path, values):
    whole = train(save_steps=1, save_total_limit=9, **values)
    for step in (2, 5):
        folder = cut_back(whole, step, tmp_path)
        again = posttrain.sft(output_dir=folder, resume=True)
        assert weights(again) == weights(whole) and timeless(again) == timeless(whole)
        assert again.ledger == whole.ledger and again.status["status"] == "finished"
        assert read_config(f"{folder}/config.yaml")["resume"] is False


def test_updates_without_a_row_do_not_count_as_steps_of_the_optimizer(train, tmp_path):
    path = tmp_path / "holes.jsonl"
    path.write_text("".join(json.dumps({"instruction": "q", "output": "an answer" if i % 4 > 1 else ""}) + "\n"
                            for i in range(24)))
    whole = train(data=path, batch_size=2, max_steps=None, num_train_epochs=1, shuffle=False, max_lost=0.6,
                  save_steps=1, save_total_limit=99)
    assert [m["loss"] is None for m in whole.metrics] == [True, False] * 6
    assert whole.metrics[0]["tokens"] == 0 and whole.metrics[0]["grad_norm"] is None
    again = posttrain.sft(output_dir=cut_back(whole, 5, tmp_path), resume=True)
    assert weights(again) == weights(whole) and timeless(again) == timeless(whole)
    listed = [(run.path / "rejected.jsonl").read_text() for run in (whole, again)]
    assert listed[0] == listed[1] and listed[0].count("\n") == 12


@pytest.mark.parametrize("method", METHODS)
def test_gradient_checkpointing_changes_memory_only(train, method):
    plain, recomputed = train("a", method=method), train("b", method=method, gradient_checkpointing=True)
    assert weights(plain) == weights(recomputed)


def test_a_finished_run_says_so(train, tmp_path, capsys):
    run = train()
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*")}
    again = posttrain.sft(output_dir=run.path, resume=True)
    assert "this run is already finished (update 6)" in capsys.readouterr().err
    assert again.path == run.path and {p: p.stat().st_mtime_ns for p in run.path.rglob("*")} == before


def test_no_checkpoint_yet_starts_at_the_beginning(train, tmp_path, capsys):
    whole = train(save_steps=2)
    folder = cut_back(whole, 0, tmp_path)
    again = posttrain.sft(output_dir=folder, resume=True)
    assert "no checkpoint yet: starting at update 0" in capsys.readouterr().err
    assert weights(again) == weights(whole) and timeless(again) == timeless(whole)


def test_a_half_written_checkpoint_is_passed_over(train, tmp_path, capsys):
    whole = train(save_steps=2, save_total_limit=9)
    folder = cut_back(whole, 4, tmp_path)
    damaged = tmp_path / "cut4" / "checkpoints" / "4" / "optimizer.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    (tmp_path / "cut4" / "checkpoints" / ".5.partial").mkdir()
    again = posttrain.sft(output_dir=folder, resume=True)
    said = capsys.readouterr().err
    assert "checkpoints/4 is damaged (optimizer.safetensors has" in said and "checkpoints/2 (update 2)" in said
    assert weights(again) == weights(whole)
    assert not list((tmp_path / "cut4" / "checkpoints").glob(".*"))


def test_a_resumed_run_keeps_its_settings(train, tmp_path, capsys):
    folder = cut_back(train(save_steps=2), 4, tmp_path)
    with pytest.raises(SettingsError) as e:
        posttrain.sft(output_dir=folder, resume=True, learning_rate=1e-5, batch_size=4)
    said = str(e.value)
    assert "a resumed run keeps its settings" in said and "where:    learning_rate" in said
    assert f"expected: 0.003, as in {folder}/checkpoints/4" in said
    assert "put batch_size back, or start a new run" in said
    posttrain.sft(output_dir=folder, resume=True, save_steps=5)
    assert "save_steps = 5: 2 before" in capsys.readouterr().err


def test_resume_needs_a_run(train, tmp_path):
    with pytest.raises(UserError, match="there is no run to resume") as e:
        posttrain.sft(output_dir=tmp_path / "run", resume=True)
    assert e.value.found == "no config.yaml in it" and "name the model or the data" in e.value.fix
    with pytest.raises(UserError, match="there is no run to resume") as e:
        posttrain.sft(resume=True)
    assert e.value.where == "output_dir" and e.value.found == "not named"


def test_what_an_epoch_learnt_survives_its_judgement(train, rows, tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.data.updates.HEAD_ROWS", 16)
    path = tmp_path / "late.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"q{i}", "output": "fine" if i < 16 else ""}) + "\n"
                            for i in range(24)))
    with pytest.raises(UserError, match="too many rows are dropped: empty answer") as e:
        train(data=path, max_steps=None, num_train_epochs=1, shuffle=False)
    assert "max_lost: 0.34" in e.value.fix
    again = posttrain.sft(output_dir=tmp_path / "run", resume=True, max_lost=0.34)
    assert again.ledger["rows"] == {"read": 24, "trained": 16, "cut": 0, "dropped": {"empty answer": 8}}
    assert len(again.metrics) == 3 and again.status["status"] == "finished"


def test_a_model_that_cannot_be_written_is_not_lost(train, tmp_path, monkeypatch):
    whole = train("whole")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.model.export._adapter", full)
        with pytest.raises(UserError, match="no space left on the disk"):
            train()
    folder = tmp_path / "run"
    assert not (folder / "model").exists() and not list(folder.glob(".*"))
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["6"]
    again = posttrain.sft(output_dir=folder, resume=True)
    assert weights(again) == weights(whole) and again.status["status"] == "finished"


def test_a_line_separator_in_a_reason_does_not_stop_a_resume(tmp_path):
    record = Record(tmp_path)
    record.rejected([{"file": "a\u2028b.jsonl", "line": 3}], step=1)
    record.rejected([{"file": "c", "line": 4}], step=2)
    with (tmp_path / "rejected.jsonl").open("a") as file:
        file.write('{"half')
    record.rewind(1, print)
    kept = json.loads((tmp_path / "rejected.jsonl").read_text("utf-8"))
    assert kept == {"file": "a\u2028b.jsonl", "line": 3, "step": 1}


def test_deterministic_tells_cublas_in_time(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    set_determinism(make_settings({}))
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    set_determinism(make_settings({"deterministic": True}))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    set_determinism(make_settings({}))
