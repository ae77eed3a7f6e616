"""Early stopping: the best validation is exported and not the last, and a resume stops where the whole run stopped."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from safetensors.torch import load_file

import posttrain
from posttrain.app.run import Run
from posttrain.core.errors import SettingsError, UserError
from posttrain.train.early_stopping import Best

WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "sky")
CLOCK = ("tokens_per_second", "seconds")

pytestmark = pytest.mark.usefixtures("in_process_module")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Rows to learn by heart, and held-out ones that contradict them: the held-out loss falls, then rises for good."""
    folder = tmp_path_factory.mktemp("data")
    for name, shift in (("rows", 5), ("held", 3)):
        pairs = zip(WORDS, WORDS[shift:] + WORDS[:shift], strict=True)
        (folder / f"{name}.json").write_text(json.dumps([{"prompt": a, "completion": b} for a, b in pairs]))
    return folder / "rows.json", folder / "held.json"


@pytest.fixture(scope="module")
def asked(tiny_model, files):
    return {"model": tiny_model, "data": files[0], "eval_data": files[1], "max_steps": 60, "batch_size": 12,
            "dtype": "float32", "method": "full", "learning_rate": 3e-3, "lr_scheduler_type": "constant",
            "warmup_steps": 1, "eval_steps": 2, "early_stopping_patience": 3}


@pytest.fixture(scope="module")
def whole(asked, tmp_path_factory, in_process_module):
    """A run that stopped by itself, with all its checkpoints."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return posttrain.sft(**asked, save_steps=1, save_total_limit=99, output_dir=folder)


@pytest.fixture
def train(asked, tmp_path):
    def run(name="run", **values) -> Run:
        return posttrain.sft(**(asked | {"output_dir": tmp_path / name} | values))
    return run


def validations(run: Run) -> dict[int, float]:
    return {m["step"]: m["eval_loss"] for m in run.metrics if "eval_loss" in m}


def weights(run: Run) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.model_path.glob("*.safetensors")}


@pytest.mark.parametrize("values", [{}, {"method": "lora", "learning_rate": 2e-2}, {"dtype": "bfloat16"}],
                         ids=["full", "lora", "halves"])
def test_the_best_is_exported_and_not_the_last(train, values, capsys):
    run = train(**values)
    said = capsys.readouterr().err
    found, status = validations(run), run.status
    best = min(found, key=found.get)
    assert 2 < best < status["step"] == best + 3 * 2 == max(found) < 60  # three validations after it, none better
    assert all(found[step] > found[best] for step in found if step > best)
    assert status["exported_step"] == best and status["eval_loss"] == found[best]
    assert f"the model is that of update {best}, the best of the validations; training ended at update {best + 6} of" \
        in said and f"{found[best]:.4f} after" in said
    # the same run stopped by hand at that update, without early stopping, exports the same bits
    by_hand = train("by_hand", early_stopping_patience=None, max_steps=best, **values)
    assert weights(by_hand) == weights(run) and by_hand.status["exported_step"] == best


def test_the_best_is_kept_beyond_the_limit(train):
    run = train(save_steps=1, save_total_limit=1)
    best, last = run.status["exported_step"], run.status["step"]
    assert [p.name for p in run.checkpoints] == [str(best), str(last - 1)]
    tensors = load_file(run.checkpoints[0] / "weights.safetensors")
    exported = load_file(run.model_path / "model.safetensors")
    assert all(tensor.equal(tensors[name]) for name, tensor in exported.items())


def test_a_run_that_ends_at_its_best_needs_no_checkpoint(train):
    run = train(max_steps=2)
    assert run.status["exported_step"] == run.status["step"] == 2 and not run.checkpoints


def cut_back(run: Run, step: int, folder) -> str:
    """A copy of a run as if it had been killed after update `step`."""
    shutil.copytree(run.path, folder)
    shutil.rmtree(folder / "model")
    for checkpoint in (folder / "checkpoints").iterdir():
        if int(checkpoint.name) > step:
            shutil.rmtree(checkpoint)
    (folder / "run.json").write_text(json.dumps({"status": "running", "step": step}))
    return str(folder)


def test_a_resumed_run_stops_where_the_whole_run_stopped(whole, tmp_path):
    best = whole.status["exported_step"]
    timeless = [{k: v for k, v in line.items() if k not in CLOCK} for line in whole.metrics]
    for step in (best - 1, best, best + 3):
        again = posttrain.sft(output_dir=cut_back(whole, step, tmp_path / f"cut{step}"), resume=True)
        assert weights(again) == weights(whole) and again.status["exported_step"] == best
        assert [{k: v for k, v in line.items() if k not in CLOCK} for line in again.metrics] == timeless


def test_the_rhythm_of_validation_is_then_part_of_the_run(whole, tmp_path):
    folder = cut_back(whole, 3, tmp_path / "cut")
    with pytest.raises(SettingsError, match="a resumed run keeps its settings") as e:
        posttrain.sft(output_dir=folder, resume=True, eval_steps=3)
    assert "where:    eval_steps" in str(e.value)


def test_a_failed_export_loses_nothing(whole, train, tmp_path, monkeypatch):
    def full(*_, **__):
        raise UserError("no space left on the disk")

    with monkeypatch.context() as patch:
        patch.setattr("posttrain.train.session.export_model", full)
        with pytest.raises(UserError, match="no space left on the disk"):
            train()
    names = [p.name for p in Run(tmp_path / "run").checkpoints]
    assert names[-1] == str(whole.status["exported_step"])  # none that says the last update and holds the best weights
    again = posttrain.sft(output_dir=tmp_path / "run", resume=True)
    assert weights(again) == weights(whole) and again.status["exported_step"] == whole.status["exported_step"]


def test_a_damaged_best_is_an_error_and_not_another_model(train, tmp_path, monkeypatch):
    monkeypatch.setattr("posttrain.train.early_stopping.verify", lambda path: "the checksum of weights differs")
    with pytest.raises(UserError, match="the checkpoint of the best update is damaged") as e:
        train()
    assert e.value.found == "the checksum of weights differs" and "the best is then sought anew" in e.value.fix
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_best_that_is_lost_is_said_at_the_resume(whole, tmp_path, capsys, how):
    best = whole.status["exported_step"]
    folder = cut_back(whole, best + 3, tmp_path / "cut")
    lost = tmp_path / "cut" / "checkpoints" / str(best)
    if how == "missing":
        shutil.rmtree(lost)
    else:
        (lost / "state.json").write_text("{}")
    capsys.readouterr()
    again = posttrain.sft(output_dir=folder, resume=True)
    assert f"the checkpoint of the best update {best} is lost (" in (said := capsys.readouterr().err)
    assert "the best is sought anew from here on" in said
    left = {step: loss for step, loss in validations(again).items() if step > best + 3}
    assert again.status["exported_step"] == min(left, key=left.get) == best + 4
    assert again.status["step"] == best + 4 + 3 * 2 and again.status["status"] == "finished"


def test_it_needs_rows_to_validate_on(tiny_model, rows):
    with pytest.raises(SettingsError, match="early_stopping_patience has no rows to validate on: set eval_data or"):
        posttrain.sft(model=tiny_model, data=rows, early_stopping_patience=2)


def test_a_loss_that_is_no_number_is_never_the_best():
    best = Best()
    assert not best.judge(math.nan, 1) and best.judge(2.0, 2) and not best.judge(math.nan, 3)
    assert not best.judge(2.0, 4) and (best.step, best.since) == (2, 2)
