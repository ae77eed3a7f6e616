"""The reference is the policy as it started, whatever it stands on and whenever the run is resumed."""

from __future__ import annotations

import io
import json
import math
import shutil

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

import posttrain
from posttrain.core.errors import UserError

pytestmark = pytest.mark.usefixtures("in_process")
WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "sky")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"say {a}", "chosen": f"{a} {b}.", "rejected": b}) + "\n"
                            for a in WORDS for b in WORDS[:4] if a != b))
    return path


@pytest.fixture
def train(tiny_model, pairs, tmp_path):
    def run(name="run", **values):
        asked = {"model": tiny_model, "data": str(pairs), "max_steps": 6, "batch_size": 8, "dtype": "float32",
                 "learning_rate": 3e-3, "output_dir": tmp_path / name}
        run.out = io.StringIO()
        made = posttrain.dpo(console=Console(file=run.out, width=300), **(asked | values))
        made.said = run.out.getvalue()
        return made
    return run


@pytest.fixture
def sft_run(tiny_model, rows, tmp_path):
    """An adapter that was trained, so that the base is not the policy any more."""
    return posttrain.sft(model=tiny_model, data=rows, max_steps=4, batch_size=8, dtype="float32", learning_rate=1e-2,
                         output_dir=tmp_path / "sft", lora_r=4)


def interrupted(run, tmp_path):
    """A copy of a run as it lay on disk after its last checkpoint."""
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    shutil.rmtree(cut / "model")
    (cut / "run.json").write_text(json.dumps({"status": "running", "step": 4}))
    return cut


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("start", ["fresh adapter", "continued adapter", "full"])
def test_the_reference_is_the_policy_as_it_started(train, sft_run, start, dtype):
    values = {"fresh adapter": {}, "continued adapter": {"model": sft_run}, "full": {"method": "full"}}[start]
    run = train(max_steps=3, dtype=dtype, **values)
    said = {"fresh adapter": "reference: the base, with the adapters off",
            "continued adapter": "reference: a frozen copy of the adapter that is continued",
            "full": "reference: log-probs of"}[start]
    assert said in run.said
    close = 1e-6 if dtype == "float32" else 1e-2
    assert abs(run.metrics[0]["loss"] - math.log(2)) < close and abs(run.metrics[0]["margin"]) < close
    assert abs(run.metrics[-1]["margin"]) > close  # and stays what it was
    assert run.metrics[-1]["loss"] < math.log(2)


def test_log_probs_are_computed_once(train):
    run = train(method="full", num_train_epochs=2, max_steps=None, batch_size=20, eval_split=0.1)
    kept = load_file(run.path / "reference.safetensors")
    assert len(kept["keys"]) == len(kept["logprobs"]) == 2 * 44 and (kept["logprobs"] < 0).all()
    assert len({bytes(k.tolist()) for k in kept["keys"]}) == 88
    assert "log-probs of 88 answers, 88 of them computed now" in run.said
    assert run.status["eval_loss_before"] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("model", ["base", "sft"])
def test_a_resumed_run_is_the_run(train, sft_run, tiny_model, tmp_path, method, model):
    values = {"method": method, "model": sft_run if model == "sft" else tiny_model, "save_steps": 3, "max_steps": 6}
    whole = train("whole", **values)
    cut = interrupted(whole.path, tmp_path)
    assert [p.name for p in (cut / "checkpoints").iterdir()] == ["3"]
    resumed = posttrain.dpo(output_dir=cut, resume=True, console=Console(file=io.StringIO()))
    for line, other in zip(whole.metrics, resumed.metrics, strict=True):
        clock = ("seconds", "tokens_per_second")
        assert {k: v for k, v in line.items() if k not in clock} == {k: v for k, v in other.items() if k not in clock}
    for file in whole.model_path.glob("*.safetensors"):
        assert file.read_bytes() == (resumed.model_path / file.name).read_bytes()


def test_a_reference_that_is_lost_is_said_at_once(train, tmp_path):
    cut = interrupted(train(method="full", save_steps=3).path, tmp_path)
    path = cut / "reference.safetensors"
    good = path.read_bytes()
    flipped, differs = good[:-1] + bytes([good[-1] ^ 1]), "its checksum differs"
    for harm, found in ((flipped, differs), (good[:50], differs), (None, "it is missing")):
        path.unlink()
        if harm is not None:
            path.write_bytes(harm)
        with pytest.raises(UserError, match="the reference of this run is lost") as e:
            posttrain.dpo(output_dir=cut, resume=True, console=Console(file=io.StringIO()))
        assert e.value.where == str(path) and e.value.found == found and "bring it back from a copy" in e.value.fix
        path.write_bytes(good)
    assert posttrain.dpo(output_dir=cut, resume=True, console=Console(file=io.StringIO())).status["step"] == 6


def test_a_reference_of_another_start_is_not_taken_up(train, tiny_model, tmp_path, monkeypatch):
    """One that was killed before its first checkpoint left a file; it counts where nothing has changed since."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def begin(**values):
        with monkeypatch.context() as patch:
            patch.setattr("posttrain.train.loop.accumulate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                train(method="full", model=model, **values)
        return (tmp_path / "run" / "reference.safetensors").read_bytes()

    first = begin()
    assert begin(resume=True) == first and ", 0 of them computed now" in train.out.getvalue()
    path = model / "model.safetensors"
    save_file({name: t * 1.01 for name, t in load_file(path).items()}, path, metadata={"format": "pt"})
    assert begin(resume=True) != first and ", 0 of them computed now" not in train.out.getvalue()
    (tmp_path / "run" / "reference.safetensors").write_bytes(first[:50])
    assert len(begin(resume=True)) == len(first)


def test_a_row_that_the_reference_does_not_know(train, pairs, tmp_path):
    data = tmp_path / "own.jsonl"
    shutil.copy(pairs, data)
    cut = interrupted(train(data=str(data), method="full", save_steps=3).path, tmp_path)
    data.write_text(data.read_text().replace("say", "tell"))
    with pytest.raises(UserError, match="the reference does not know a row of this run") as e:
        posttrain.dpo(output_dir=cut, resume=True, allow_changes=True, console=Console(file=io.StringIO()))
    assert "own.jsonl:" in e.value.found and "start a new run" in e.value.fix
    assert len((cut / "metrics.jsonl").read_text().splitlines()) == 3, "said before an update"


def test_a_longer_run_has_rows_that_the_reference_never_saw(train, tmp_path):
    """Of method: full what came after the first max_steps was never computed: said at once, before an update."""
    cut = interrupted(train(method="full", max_steps=3, save_steps=2).path, tmp_path)
    lines = (cut / "metrics.jsonl").read_text().splitlines()[:2]
    with pytest.raises(UserError, match="the reference does not know a row of this run") as e:
        posttrain.dpo(output_dir=cut, resume=True, allow_changes=True, max_steps=6,
                      console=Console(file=io.StringIO()))
    assert "pairs.jsonl:" in e.value.found and "put data, max_steps and num_train_epochs back" in e.value.fix
    assert (cut / "metrics.jsonl").read_text().splitlines() == lines
    again = posttrain.dpo(output_dir=cut, resume=True, allow_changes=True, max_steps=3, learning_rate=1e-3,
                          console=Console(file=io.StringIO()))
    assert again.status["status"] == "finished" and len(again.metrics) == 3


def test_a_second_epoch_of_known_rows_may_follow(train, tmp_path):
    cut = interrupted(train(method="full", max_steps=6, save_steps=4).path, tmp_path)  # all 44 pairs
    run = posttrain.dpo(output_dir=cut, resume=True, allow_changes=True, max_steps=9,
                        console=Console(file=io.StringIO()))
    assert len(run.metrics) == 9


def test_another_verb_does_not_resume_it(train):
    run = train(max_steps=2)
    with pytest.raises(UserError, match="these settings are of `posttrain dpo`") as e:
        posttrain.sft(output_dir=run.path, resume=True)
    assert f"use `posttrain dpo --output_dir {run.path} --resume`" in e.value.fix


def test_preferences_are_learnt(train):
    run = train(max_steps=30, learning_rate=1e-2, eval_split=0.1)
    assert run.metrics[-1]["eval_accuracy"] == 1 and run.metrics[-1]["eval_margin"] > 1
    assert torch.tensor([m["loss"] for m in run.metrics[-5:]]).mean() < 0.4


def test_good_and_bad_answers_are_told_apart(tiny_model, tmp_path, sft_run):
    rows = [{"prompt": f"say {a}", "completion": f"{a} {b}." if good else b, "label": good}
            for a in WORDS for b in WORDS[:2] for good in (True, False)]
    (tmp_path / "labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for method, model in (("lora", sft_run), ("full", tiny_model)):
        run = posttrain.kto(model=model, data=tmp_path / "labels.jsonl", method=method, max_steps=12, batch_size=16,
                            dtype="float32", learning_rate=3e-3, eval_split=0.1, output_dir=tmp_path / method,
                            num_train_epochs=4, console=Console(file=io.StringIO()))
        first, last = run.metrics[0], run.metrics[-1]
        assert abs(first["loss"] - 0.5) < 1e-6 and first["kl"] < 1e-6  # policy = reference: 1 - sigmoid(0)
        assert last["reward_good"] > last["reward_bad"] and last["eval_loss"] < 0.5 and last["kl"] >= 0
        assert run.status["eval_loss_before"] == pytest.approx(0.5, abs=1e-6)


def test_odds_are_learnt_without_a_reference(tiny_model, pairs, tmp_path):
    run = posttrain.orpo(model=tiny_model, data=pairs, max_steps=12, batch_size=8, dtype="float32", learning_rate=1e-2,
                         output_dir=tmp_path / "orpo", console=Console(file=io.StringIO()), num_train_epochs=4)
    assert run.metrics[-1]["nll"] < run.metrics[0]["nll"] and run.metrics[-1]["accuracy"] == 1
