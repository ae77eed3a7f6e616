"""The arithmetic of memory: truths that folklore errs about, counts by PEFT, and the trace's own promises."""

from __future__ import annotations

import pytest
import torch
from torch.utils._pytree import tree_iter

from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.model.adapters import add_lora
from posttrain.train import rehearsal
from posttrain.train.plan import MOST, NF4_BYTES, STEP, Planner, told
from posttrain.train.trace import MEASURED, Meter, _trace, build, trace

GIB = 1 << 30
LLAMAS = {"7b": (4096, 11008, 32, 32), "33b": (6656, 17920, 60, 52), "65b": (8192, 22016, 80, 64)}


def llama(size, **more):
    from transformers import LlamaConfig

    width, inner, layers, heads = LLAMAS[size]
    return LlamaConfig(**({"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers,
                           "num_attention_heads": heads, "num_key_value_heads": heads, "vocab_size": 32000,
                           "tie_word_embeddings": False} | more))


def small(**more):
    return llama("7b", **({"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 5, "vocab_size": 512,
                           "num_attention_heads": 4, "num_key_value_heads": 2} | more))


def planner(config, dtype=torch.bfloat16, cpu=False, **keys):
    return Planner(config, make_settings({"pack_tokens": 1024} | keys), dtype, cpu)


def test_rank_16_on_q_and_v_of_a_7b_is_8_million_parameters():
    plan = planner(llama("7b"), lora_r=16, lora_target_modules=["q_proj", "v_proj"])
    assert plan.trained("lora") == 8_388_608 and plan.total == 6_738_415_616


@pytest.mark.parametrize(("size", "fits"), [("33b", 24), ("65b", 48)])
def test_qlora_fits_65b_in_48_gb_and_not_in_24_and_33b_in_24(size, fits):
    plan = planner(llama(size), method="qlora", gradient_checkpointing=True)
    peak = plan.sizes("qlora", 1024, True, True).peak
    assert (24 if size == "65b" else 16) * GIB < peak < fits * GIB


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("targets", [["all-linear"], ["q_proj", "down_proj"], ["lm_head", "o_proj"]])
def test_counts_are_those_of_peft(targets, dora):
    model = build(small(), torch.float32)
    with torch.device("meta"):
        wrapped = add_lora(model, r=6, alpha=8, dropout=0.0, targets=targets, seed=0, dora=dora)
    plan = planner(small(), lora_r=6, lora_target_modules=targets, use_dora=dora)
    assert plan.trained("lora") == sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    assert plan.total == sum(p.numel() for p in build(small(), torch.float32).parameters())


def test_weights_and_optimizer_by_hand():
    plan = planner(small(tie_word_embeddings=True))
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96
    total = 5 * (layer + 128) + 64 + 512 * 64
    full, several = plan.sizes("full", 256, False, False), plan.sizes("full", 256, False, True)
    assert plan.total == total and full.weights == 2 * total
    assert full.optimizer == 10 * total  # two float32 moments and the masters' lower halves
    assert full.gradients == 2 * total and several.gradients == 4 * total  # several packs are summed in float32
    adapters = plan.trained("lora")
    assert plan.sizes("lora", 256, False, True).optimizer == 10 * adapters
    assert plan.weights("lora") == 2 * total + 2 * adapters  # adapters compute in bf16 beside their masters' halves
    assert plan.weights("qlora") == int(5 * layer * NF4_BYTES) + 2 * (total - 5 * layer) + 2 * adapters
    wide = planner(small(), torch.float32)
    assert wide.weights("lora") == 4 * (wide.total + wide.trained("lora"))
    assert wide.sizes("lora", 256, False, True).optimizer == 8 * wide.trained("lora")
    assert plan.disk("full", 2) == (12 * total, 2 * total)


def test_nf4_is_4_127_bits_a_weight():
    assert pytest.approx(4.127, abs=1e-3) == 8 * NF4_BYTES


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_phase_is_linear_in_the_layers(method, checkpointing):
    plan = planner(small(num_hidden_layers=9))
    traced, exact = plan.phases(method, 300, checkpointing, False)
    assert exact

    def make(layers):
        model = build(plan.config, torch.bfloat16, layers)
        model = model if method == "full" else plan._adapted(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        return model.train()

    whole = _trace(make(9), 300, 1024, False, False, frozenset({"logprobs"}))
    assert traced.values() == pytest.approx(whole.values(), rel=1e-6)
    assert trace(make, max(MEASURED), 300, 1024, cpu=False, sums=False).saved < whole.saved or checkpointing


def test_checkpointing_keeps_one_width_a_layer_and_token():
    plan = planner(small(num_hidden_layers=20, vocab_size=16))
    kept = plan.sizes("full", 1024, True, False).activations
    assert kept == pytest.approx(20 * 1024 * 64 * 2, rel=0.15)
    assert plan.sizes("full", 1024, False, False).activations > 8 * kept


def test_an_architecture_that_cannot_be_traced_is_said_to_be_estimated(monkeypatch):
    def fails(*_, **__):
        raise NotImplementedError("no kernel without bytes")

    monkeypatch.setattr("posttrain.train.plan.trace", fails)
    found = planner(small()).sizes("full", 1024, False, False)
    assert not found.exact and found.activations == 5 * 1024 * (20 * 64 + 5 * 96) * 2


def test_the_smallest_change_that_fits():
    plan = planner(llama("7b", num_hidden_layers=8), method="full", max_length=512, pack_tokens=8192)

    def change(method, tokens, checkpointing):
        return plan.change(plan.sizes(method, tokens, checkpointing, True).peak + 1)

    assert plan.fits({}, plan.sizes("full", 8192, False, True).peak)
    assert change("full", 2048, False) == {"pack_tokens": 2048}
    assert change("full", 512, False) == {"pack_tokens": 512}
    assert set(change("full", 4096, True)) == {"pack_tokens"}  # milder than to recompute
    short = planner(llama("7b", num_hidden_layers=8), method="full", max_length=512, pack_tokens=512)
    short.most = 512  # one pack is the whole update
    assert short.change(short.sizes("full", 512, True, False).peak + 1) == {"gradient_checkpointing": True}
    assert change("lora", 512, True)["method"] == "lora"
    assert change("qlora", 512, True) == {"method": "qlora", "gradient_checkpointing": True, "pack_tokens": 512}
    assert plan.change(GIB) is None and "no method fits" in told(None)
    assert told({"gradient_checkpointing": True, "pack_tokens": 512}) == (
        "set gradient_checkpointing: true and pack_tokens: 512")


@pytest.mark.parametrize("spare", [0.3, 0.6, 0.9])
def test_the_largest_pack_fits_and_is_the_largest(spare):
    """All but a twentieth of it, whatever lies between one sequence and the most that is considered."""
    plan = planner(small(), method="lora", max_length=200, pack_tokens=4096)
    one, all_of = (plan.run_of("lora", n, False).peak for n in (200, MOST))
    room = int(one + spare * (all_of - one))
    found = plan.largest_pack("lora", False, room)
    assert (found % STEP == 0 or found % 200 == 0) and plan.run_of("lora", found, False).peak <= room
    assert plan.run_of("lora", int(found * 1.05) + STEP, False).peak > room
    assert plan.largest_pack("lora", False, one - 1) is None and plan.largest_pack("lora", False, all_of) == MOST


def test_shorter_rows_are_the_last_resort():
    plan = planner(llama("33b"), method="qlora", gradient_checkpointing=True, max_length=16384, pack_tokens=16384)
    found = plan.change(24 * GIB)
    assert found == {"pack_tokens": 4096, "max_length": 4096}
    fits = planner(llama("33b"), method="qlora", gradient_checkpointing=True, **found)
    assert fits.fits({}, 24 * GIB)


def test_a_suggestion_fits_where_an_update_is_smaller_than_a_pack():
    """Packs smaller than the largest update make several of it, and their sums of gradients take room too."""
    plan = planner(small(), method="full", max_length=512, pack_tokens=4096)
    plan.most = 3000
    for room in range(plan.run_of("full", 512, False).peak, plan.run_of("full", 4096, False).peak, 100_000):
        assert plan.fits(plan.change(room), room)


@pytest.mark.parametrize("max_length", [57, 300, 1000])
@pytest.mark.parametrize("cpu", [False, True])
def test_packs_of_uneven_rows_are_traced(max_length, cpu):
    plan = planner(small(), cpu=cpu, max_length=max_length, pack_tokens=3001)
    assert plan.sizes("lora", 3001, False, True).exact


def test_a_plan_is_what_the_tensors_of_a_pack_take(tiny_model, rows, tmp_path, in_process, monkeypatch):
    """The trace beside tensors with bytes, counted as they come and go: the same in bf16, full and LoRA."""
    import posttrain

    class Counted(Meter):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            out = op(*args, **(kwargs or {}))
            for tensor in tree_iter(out):
                if isinstance(tensor, torch.Tensor):
                    self._count(tensor.untyped_storage())
            return out

    accumulate, found = rehearsal.accumulate, []

    def counted(models, objective, made, **more):
        with Counted([*models.policy.model.parameters(), *models.policy.model.buffers()]) as meter:
            means = accumulate(models, objective, made, **more)
        found.append(meter.peak)
        return means

    sizes, planned = Planner.sizes, []
    monkeypatch.setattr(rehearsal, "accumulate", counted)
    monkeypatch.setattr(Planner, "sizes", lambda self, *a: planned.append((self, a)) or sizes(self, *a))
    for method in ("full", "lora"):
        posttrain.sft(model=tiny_model, data=str(rows), output_dir=tmp_path / method, method=method, dtype="bfloat16",
                      max_steps=40, pack_tokens=2048, max_length=64, batch_size=64)
        plan, asked = planned[-1]
        phases, exact = plan.phases(*asked)
        sums = 4 * plan.trained(method) if asked[-1] else 0
        assert exact and phases.peak + sums == pytest.approx(found[-1], rel=0.1)


def test_an_impossible_plan_stops_before_a_weight_is_read(tiny_model, rows, tmp_path, in_process, monkeypatch):
    import posttrain

    monkeypatch.setattr(rehearsal, "available", lambda device: 1_000_000)
    monkeypatch.setattr("posttrain.train.session.build_policy", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UserError, match="the run does not fit in the memory of this machine") as e:
        posttrain.sft(model=tiny_model, data=str(rows), output_dir=tmp_path / "run", method="full", dtype="float32")
    assert e.value.found == "1.3 MB planned, 1.0 MB free" and "no method fits here" in e.value.fix
    assert not (tmp_path / "run").exists()


def test_a_pack_too_large_is_refused_before_the_rehearsal(tiny_model, rows, tmp_path, in_process, monkeypatch):
    import posttrain

    monkeypatch.setattr(rehearsal, "available", lambda device: 180 << 20)
    monkeypatch.setattr(rehearsal.Memory, "now", lambda self: 0)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_, **__: pytest.fail("it was rehearsed"))
    with pytest.raises(UserError, match="does not fit") as e:
        posttrain.sft(model=tiny_model, data=str(rows), output_dir=tmp_path / "run", dtype="float32",
                      pack_tokens=1 << 17, max_length=256)
    assert e.value.fix.startswith("set ") and "pack_tokens: 131072" in e.value.where
