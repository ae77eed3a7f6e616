"""Memory that runs out in the middle of a run, injected: the same update with less, and at last a remedy."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import posttrain
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.model.forward import Forward
from posttrain.train.optim import MasterAdamW
from posttrain.train.room import no_memory

pytestmark = pytest.mark.usefixtures("in_process")
SAID = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.fixture
def run(tiny_model, rows, tmp_path):
    def run(name, **values):
        asked = {"model": tiny_model, "data": str(rows), "max_steps": 3, "batch_size": 16, "dtype": "float32",
                 "method": "full", "max_length": 32, "pack_tokens": 128, "output_dir": tmp_path / name, "save_steps": 2}
        return posttrain.sft(**(asked | values))
    return run


@pytest.fixture
def gradients(monkeypatch):
    """The gradient of every real update."""
    seen, real = [], MasterAdamW.step

    def step(self, *more):
        if not self._dry:
            seen.append([g.clone() for g in self.gradients()])
        return real(self, *more)

    monkeypatch.setattr(MasterAdamW, "step", step)
    return seen


def run_out(monkeypatch, times, when=lambda pack: True):
    """The next `times` training forwards of real rows (`when` says which) fail as a full GPU does, halfway."""
    real, left = Forward.hidden, [times]

    def hidden(self, pack):
        out = real(self, pack)
        if left[0] and torch.is_grad_enabled() and pack.origins[0] != "rehearsal" and when(pack):
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError(SAID)
        return out

    monkeypatch.setattr(Forward, "hidden", hidden)


def close(a, b):
    return all(torch.allclose(x, y, rtol=1e-5, atol=1e-5 * float(y.abs().max())) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_update_repeated_is_the_update(run, gradients, monkeypatch, capsys, tmp_path, times):
    run("whole")
    expected, gradients[:] = list(gradients), []
    with monkeypatch.context() as patch:
        run_out(patch, times)
        made = run("less")
    assert len(gradients) == 3 and all(close(a, b) for a, b in zip(gradients, expected, strict=True))
    said = capsys.readouterr().err
    steps = ["pack_tokens = 64", "pack_tokens = 32", "gradient_checkpointing = true"]
    for n, step in enumerate(steps):
        line = f"memory ran out ({SAID}): the same update again with {step}"
        assert said.count(line) == (n < times)
    state = json.loads((made.path / "checkpoints" / "2" / "state.json").read_text())
    assert state["in_force"] == {"pack_tokens": [64, 32, 32][times - 1], "gradient_checkpointing": times == 3}
    assert state["conditions"]["layout"]["pack_tokens"] == state["in_force"]["pack_tokens"]
    assert state["ledger"]["rows"]["read"] == 32  # nothing is counted twice
    whole = {p.name: p.read_bytes() for p in made.model_path.glob("*.safetensors")}
    shutil.rmtree(made.model_path)
    (made.path / "run.json").write_text('{"status": "running"}')
    again = posttrain.sft(output_dir=made.path, resume=True)
    assert {p.name: p.read_bytes() for p in again.model_path.glob("*.safetensors")} == whole  # to the bit
    assert f"pack_tokens = {state['in_force']['pack_tokens']}: in force at the checkpoint" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["ppo", "grpo", "online_dpo"])
def test_a_collection_repeated_is_the_collection(tiny_model, rows, tmp_path, monkeypatch, gradients, capsys, verb):
    """Its scores are counted once, and its packs, those that a reward adapter sees too, are the smaller ones."""
    from posttrain.train.rewards import RoleReward

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"say {a}", "chosen": f"{a}.", "rejected": f"no {a}"}) + "\n"
                             for a in ("red", "green", "blue", "one")))
    keys = {"model": tiny_model, "dtype": "float32", "max_length": 32}
    reward = posttrain.reward(data=str(pairs), max_steps=2, batch_size=4, learning_rate=1e-2,
                              output_dir=tmp_path / "reward", **keys)
    gradients[:] = []
    seen, asked, real, real_reward = [], [], Forward.hidden, RoleReward.__call__

    def run(name):
        return getattr(posttrain, verb)(
            data=f"{rows}[#16]", reward=str(reward.path), max_steps=4, batch_size=8, max_new_tokens=8, save_steps=1,
            pack_tokens=320, learning_rate=3e-3, minibatches=1 if verb == "ppo" else 2, output_dir=tmp_path / name,
            **({"num_generations": 2} if verb == "grpo" else {}), **keys)

    def watched(self, pack):
        if torch.is_grad_enabled() and pack.origins[0] != "rehearsal":
            seen.append(len(pack.ids_T))
        return real(self, pack)

    whole = run("whole")
    expected, gradients[:] = list(gradients), []
    capsys.readouterr()
    monkeypatch.setattr(Forward, "hidden", watched)
    monkeypatch.setattr(RoleReward, "__call__", lambda self, answers: asked.append(self.pack_tokens) or real_reward(
        self, answers))
    run_out(monkeypatch, 1)
    less = run("less")
    said = capsys.readouterr().err
    assert said.count("the same update again with pack_tokens = 160") == said.count("memory ran out") == 1
    assert asked == [320, 160, 160] and seen[0] > 160 >= max(seen[1:]), seen
    assert len(gradients) == len(expected) == 4 and close(gradients[0], expected[0])
    for made, wanted in zip(gradients, expected, strict=True):  # Adam makes more of what is rounding at first
        one, two = (torch.cat([g.flatten() for g in grads]) for grads in (made, wanted))
        assert (one - two).norm() <= 1e-4 * two.norm()
    found = [json.loads((r.path / "checkpoints" / "2" / "state.json").read_text())["objective"] for r in (whole, less)]
    assert found[0]["scores"][0] == found[1]["scores"][0] == (8 if verb == "ppo" else 16)
    assert found[1]["scores"] == pytest.approx(found[0]["scores"], rel=1e-5)
    for line, other in zip(whole.metrics, less.metrics, strict=True):
        for name in ("reward", "kl", "entropy", "sampler_gap"):
            assert other[name] == pytest.approx(line[name], rel=1e-3, abs=1e-5), name


def test_a_pair_is_never_split(tiny_model, tmp_path, monkeypatch):
    """Packs give way down to what holds both answers."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"say {a} {b}", "chosen": f"{a} {b}.", "rejected": f"no {a} {b}"}) +
                             "\n" for a in ("red", "green", "blue", "one") for b in ("two", "sun")))
    run_out(monkeypatch, 2)
    made = posttrain.dpo(model=tiny_model, data=str(pairs), dtype="float32", max_length=24, pack_tokens=72,
                         max_steps=2, batch_size=4, save_steps=1, output_dir=tmp_path / "run")
    state = json.loads((made.path / "checkpoints" / "1" / "state.json").read_text())
    assert state["in_force"] == {"pack_tokens": 48, "gradient_checkpointing": True}


def test_where_nothing_gives_way_the_remedy_is_named(run, monkeypatch):
    run_out(monkeypatch, 99)
    with pytest.raises(UserError, match="the GPU's memory ran out") as e:
        run("none", method="lora")
    assert e.value.found == SAID and e.value.fix == "set method: qlora; `posttrain plan` says what fits"


def test_a_step_half_made_is_never_made_again(run, monkeypatch):
    def step(self, *more):
        if not self._dry:
            self.steps += 1
            raise torch.cuda.OutOfMemoryError(SAID)

    monkeypatch.setattr(MasterAdamW, "step", step)
    with pytest.raises(UserError, match="the GPU's memory ran out") as e:
        run("half")
    assert e.value.fix.startswith("set pack_tokens: 32 and gradient_checkpointing: true;")


def test_the_remedy_names_what_is_not_in_force_yet():
    def fix(**values):
        return no_memory(make_settings({"max_length": 64, "pack_tokens": 64} | values), SAID).fix.split(";")[0]

    assert fix(pack_tokens=128) == "set pack_tokens: 64 and gradient_checkpointing: true"
    assert fix(method="full", gradient_checkpointing=True) == "set method: lora"
    assert fix(method="qlora", gradient_checkpointing=True) == "lower max_length, or take a smaller model"


def test_a_rehearsal_that_runs_out_stops_a_set_number_and_lowers_a_chosen_one(run, monkeypatch, capsys):
    real, left = Forward.hidden, [0]

    def hidden(self, pack):
        if left[0] and pack.origins[0] == "rehearsal" and len(pack.ids_T) > 32:
            left[0] -= 1
            raise torch.cuda.OutOfMemoryError(SAID)
        return real(self, pack)

    monkeypatch.setattr(Forward, "hidden", hidden)
    left[0] = 1
    with pytest.raises(UserError, match="the GPU's memory ran out"):
        run("set")
    left[0] = 1
    made = run("chosen", pack_tokens="auto")
    said = capsys.readouterr().err
    assert "pack_tokens = 16384: the most, of at most 16,384" in said and "again with pack_tokens = 8192" in said
    assert made.status["status"] == "finished"
