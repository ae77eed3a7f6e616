"""Runs on their own answers: what some keys and models would break, from the first update to a run that fails."""

from __future__ import annotations

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from test_reinforce_runs import timeless

import posttrain
from posttrain.core.errors import UserError

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def train(sampled_run):
    return sampled_run


@pytest.mark.parametrize("verb", ["ppo", "grpo", "online_dpo"])
def test_in_bf16_a_continued_adapter_is_its_own_reference(train, tiny_model, rows, tmp_path, verb):
    """To the bit: the reference is rounded as the actor is."""
    sft = posttrain.sft(model=tiny_model, data=str(rows), max_steps=6, batch_size=8, dtype="bfloat16", max_length=64,
                        learning_rate=1e-2, output_dir=tmp_path / "sft")
    first = train(verb, model=sft.model_path, dtype="bfloat16", max_steps=2).metrics[0]
    assert first["kl"] == first["k1"] == first["k3"] == 0.0
    assert verb != "online_dpo" or (first["loss"] == pytest.approx(math.log(2), abs=1e-12) and first["margin"] == 0)


def with_dropout(tiny_model, folder, kind):
    """A tiny model whose dropout is a rate beside its weights, no module, with the tiny model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

    shape = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
             "max_position_embeddings": 128, "attention_dropout": 0.5, "pad_token_id": None}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, intermediate_size=48)) if kind == "llama" else OPTForCausalLM(
        OPTConfig(**shape, ffn_dim=48, word_embed_proj_dim=32, dropout=0.5))
    shutil.copytree(tiny_model, folder)
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("verb", ["ppo", "grpo"])
@pytest.mark.parametrize("kind", ["llama", "opt"])
def test_dropout_is_off_however_a_model_has_it(train, tiny_model, tmp_path, kind, verb):
    """What is sampled, what was and what is trained are one distribution, to the bit."""
    first = train(verb, model=with_dropout(tiny_model, tmp_path / kind, kind), max_steps=2).metrics[0]
    assert first["ratio"] == 1.0 and first["approx_kl"] == first["kl"] == first["k3"] == first["clip_fraction"] == 0.0
    assert first["sampler_gap"] < 1e-5


@pytest.mark.parametrize("verb", ["ppo", "grpo", "online_dpo"])
def test_pack_tokens_of_the_programs_choice(train, capsys, verb):
    chosen = train(verb, pack_tokens="auto", max_steps=4)
    assert "planned within four fifths of" in capsys.readouterr().err
    number = json.loads((chosen.path / "run.json").read_text())["memory"]["tokens"]
    assert chosen.status["status"] == "finished" and isinstance(number, int)
    one, two = (load_file(r.model_path / "adapter_model.safetensors") for r in (
        chosen, train(verb, name="set", pack_tokens=chosen.config["pack_tokens"], max_steps=4)))
    assert all(torch.equal(one[n], two[n]) for n in two)


def test_a_short_run_that_a_guard_stops_has_a_checkpoint(train, tmp_path, monkeypatch, capsys):
    """Whether max_steps or the data says how long it is."""
    from posttrain.train import guards

    monkeypatch.setattr(guards, "GUARDS", (guards.Guard("enough", "kl {kl:.3f}", "less", "stop",
                                                        lambda now, first: now["kl"] != 0.0),))
    for name, values in (("steps", {"max_steps": 24}), ("rows", {"max_steps": None, "num_train_epochs": 2})):
        with pytest.raises(UserError, match="enough") as e:
            train(name=name, save_steps=None, **values)
        assert "save_steps = 8: every 2 of 6 collections" in capsys.readouterr().err
        assert e.value.fix.endswith("none yet: set save_steps"), "the second collection is the first that has moved"
    monkeypatch.setattr(guards, "GUARDS", (guards.Guard("enough", "kl {kl:.3f}", "less", "stop",
                                                        lambda now, first: now["answer_tokens"] < 0),))
    run = train(name="whole", save_steps=None, max_steps=12)
    assert [c.name for c in run.checkpoints] == ["4", "8"] and run.config["save_steps"] == 4


def test_updates_beyond_max_steps_are_told(train, capsys):
    run = train(max_steps=6)
    assert "max_steps = 6: made in whole collections of 4 updates, so 8 are made" in capsys.readouterr().err
    assert run.status["step"] == len(run.metrics) == 8


def test_a_collection_that_failed_is_forgotten(train, monkeypatch, tmp_path):
    """The checkpoint of an error knows only collections that were learnt from, and the run goes on as if it had not
    been."""
    from posttrain.train.objectives.ppo import PPO

    whole, real = train("ppo", name="whole"), PPO._tell
    with monkeypatch.context() as patch:
        def fails(self, *given):
            if self.state["collection"] == 1:
                raise UserError("the judge is gone")
            return real(self, *given)
        patch.setattr(PPO, "_tell", fails)
        with pytest.raises(UserError, match="the judge is gone"):
            train("ppo", save_steps=100)
    state = json.loads((tmp_path / "run" / "checkpoints" / "4" / "state.json").read_text())
    assert state["objective"]["collection"] == 1 and state["objective"]["scores"][0] == 8
    again = posttrain.ppo(resume=True, output_dir=tmp_path / "run")
    assert timeless(again) == timeless(whole)
