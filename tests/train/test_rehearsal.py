"""The dress rehearsal: as large as the run, and gone without a trace."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest
import torch

import posttrain
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.model import memory
from posttrain.model.forward import Forward
from posttrain.model.memory import Memory
from posttrain.model.policy import build_policy, kept_wide
from posttrain.model.probe import prepare_forward
from posttrain.model.resolve import resolve_model
from posttrain.train import rehearsal, session
from posttrain.train.objective import Models
from posttrain.train.objectives.sft import SFT
from posttrain.train.optim import MasterAdamW
from posttrain.train.rehearsal import largest_pack, made_up_pack, rehearse
from posttrain.train.update import accumulate

KINDS = {
    "full": {"method": "full", "dtype": "float32"},
    "full in halves": {"method": "full", "dtype": "bfloat16"},
    "lora": {"dtype": "float32", "lora_dropout": 0.3},
    "recomputed": {"method": "full", "dtype": "bfloat16", "gradient_checkpointing": True},
}


def built(tiny_model, values):
    """(models, optimizer) as a session has them, with a few weights of minus zero."""
    settings = make_settings({"model": str(tiny_model)} | values)
    policy = build_policy(settings, resolve_model(str(tiny_model)), vocab_size=300, new_tokens=[], special={})
    with torch.no_grad():
        next(p for p in policy.model.parameters() if p.requires_grad).view(-1)[:5] = -0.0
    optimizer = MasterAdamW(policy.model.named_parameters(), beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.1)
    optimizer.lower(policy.dtype, kept_wide(policy.model))
    return Models(prepare_forward(policy.model)[0]), optimizer


def bits(models, optimizer):
    """Every byte of weights, buffers and optimizer; moments that hold nothing yet count as none."""
    tensors = [*models.policy.model.state_dict().values(), *(t for t in optimizer.low if t is not None),
               *(m for kind in optimizer.moments for m in kind if optimizer.steps or m.any())]
    return [t.detach().reshape(-1).view(torch.uint8).clone() for t in tensors]


def gradient(models, optimizer, packs):
    optimizer.begin(len(packs))
    accumulate(models, SFT(), packs, seed=1, step=1)
    return [g.clone() for g in optimizer.gradients()]


def equal(a, b):
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("restored", [False, True], ids=["fresh", "restored"])
@pytest.mark.parametrize("values", KINDS.values(), ids=KINDS)
def test_it_leaves_no_trace(tiny_model, values, restored):
    models, optimizer = built(tiny_model, values)
    packs = [made_up_pack(n, 16, 300) for n in (50, 30)]
    if restored:
        gradient(models, optimizer, packs[1:])
        optimizer.step(1e-3, 1.0, optimizer.norm())
    expected = gradient(models, optimizer, packs)
    torch.manual_seed(5)
    before, state, steps = bits(models, optimizer), torch.get_rng_state(), optimizer.steps
    rehearse(models, SFT(), optimizer, 200, 32, several=True, validates=True)
    assert equal(bits(models, optimizer), before) and optimizer.steps == steps
    assert torch.equal(torch.get_rng_state(), state) and models.policy.model.training
    assert all(g is None for g in optimizer.gradients())
    assert equal(gradient(models, optimizer, packs), expected)


def run(tiny_model, rows, folder, **values):
    asked = {"model": tiny_model, "data": str(rows), "max_steps": 3, "batch_size": 8, "dtype": "float32",
             "max_length": 64, "output_dir": folder, "eval_split": 0.1}
    return posttrain.sft(**(asked | values))


def test_a_run_with_it_is_the_run_without(tiny_model, rows, tmp_path, in_process, monkeypatch):
    with_it = run(tiny_model, rows, tmp_path / "with", lora_dropout=0.1)
    monkeypatch.setattr(rehearsal, "rehearse", lambda *_, **__: None)
    without = run(tiny_model, rows, tmp_path / "without", lora_dropout=0.1)
    for line in zip(with_it.metrics, without.metrics, strict=True):
        assert line[0]["loss"] == line[1]["loss"] and line[0]["grad_norm"] == line[1]["grad_norm"]
    name = "adapter_model.safetensors"
    assert (with_it.model_path / name).read_bytes() == (without.model_path / name).read_bytes()


def test_every_token_of_a_whole_pack_is_trained(tiny_model, rows, tmp_path, in_process, monkeypatch):
    seen, real = [], Forward.__call__

    def watch(self, pack, *more):
        if pack.origins[0] == "rehearsal":
            seen.append((len(pack.ids_T), int(pack.weights_T.sum()), max(pack.lengths), torch.is_grad_enabled()))
        return real(self, pack, *more)

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Forward, "__call__", watch)
    monkeypatch.setattr(session.Session, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, rows, tmp_path / "a", pack_tokens=80, max_steps=None)
    assert seen == [(80, 80, 40, True)] * 2 + [(80, 80, 40, False)]  # an update of several packs, then validation
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, rows, tmp_path / "b", pack_tokens=4000, max_steps=None, eval_split=0)
    assert seen == [(4000, 4000, 64, True)]
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        run(tiny_model, rows, tmp_path / "c", pack_tokens=4000, max_steps=2, eval_split=0)
    assert len(seen) == 1 and seen[0][0] < 200  # no update of this run holds more


def test_a_made_up_pack_keeps_its_atoms_whole():
    pack = made_up_pack(100, 40, 9, per_atom=2)
    assert pack.lengths == [25] * 4 and pack.atoms == [0, 2, 4] and pack.weights_T.eq(1).all()
    assert pack.positions_T.tolist() == [*range(25)] * 4 and pack.ids_T.max() < 9


def head(*updates):
    return SimpleNamespace(updates=list(updates))


def test_the_largest_pack_of_a_run():
    assert largest_pack(4096, head(700, 900, 800), 3) == (900, False)  # every update was counted
    assert largest_pack(4096, head(700, 5000), 2) == (4096, True)
    assert largest_pack(4096, head(700, 900, 800), 4) == (4096, False)  # later ones are alike, not known
    assert largest_pack(4096, head(2000, 4000, 3000), 4) == (4096, True)
    assert largest_pack(4096, head(), 4) == (4096, True)


def test_a_disk_too_small_is_named_before_the_first_update(tiny_model, rows, tmp_path, in_process, monkeypatch):
    one = 12 * sum(p.numel() for p in built(tiny_model, KINDS["full"])[0].policy.model.parameters())
    shipped = one // 3  # the model at the end: float32, as it came

    def with_free(free, **values):
        monkeypatch.setattr(rehearsal.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
        return run(tiny_model, rows, tmp_path / "run", method="full", **values)

    with pytest.raises(UserError) as e:
        with_free(one + shipped - 1)
    assert e.value.message == "the disk is too small for one checkpoint" and e.value.found == "1.7 MB free"
    assert e.value.expected == "1.7 MB: 1 × 1.3 MB, and 0.4 MB for the model" and "another disk" in e.value.fix
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError) as e:
        with_free(3 * one + shipped - 1, save_steps=1, save_total_limit=3, max_steps=9)
    assert e.value.message == "the disk is too small for the checkpoints"
    assert e.value.fix.startswith("set save_total_limit: 1, or put output_dir")
    kept = with_free(3 * one + shipped, save_steps=1, save_total_limit=2, max_steps=9)
    assert json.loads((kept.path / "run.json").read_text())["status"] == "finished"
    with pytest.raises(UserError) as e:  # two are kept, the best, and the one being written
        with_free(4 * one + shipped - 1, early_stopping_patience=1, eval_steps=1, max_steps=9, eval_split=0.1,
                  output_dir=tmp_path / "other")
    assert "4 × 1.3 MB" in e.value.expected and e.value.fix.startswith("set save_total_limit: 1, or put output_dir")


@pytest.mark.skipif(not memory.PEAK.exists(), reason="this system cannot forget a peak")
def test_memory_is_counted_from_its_beginning():
    block = torch.ones(32 << 18)  # 32 MB
    counted = Memory.begin(torch.device("cpu"))
    assert counted.peak() < 8 << 20
    more = torch.ones(64 << 18)
    del more
    assert 60 << 20 < counted.peak() < 80 << 20
    assert block is not None and memory.available(torch.device("cpu")) <= os.sysconf("SC_PHYS_PAGES") * 4096
    assert [memory.size(n) for n in (13.24e9, 842e6, 1.73e6)] == ["13.2 GB", "842 MB", "1.7 MB"]


def test_an_automatic_pack_holds_a_pair_where_nothing_else_is_planned_to_fit(tiny_model, monkeypatch):
    """Two sequences of a row share a pack: the least is twice `max_length`, not once."""
    monkeypatch.setattr(rehearsal.Planner, "largest_pack", lambda *given: None)
    for objective, least in (("sft", 64), ("dpo", 128)):
        settings = make_settings({"objective": objective, "model": str(tiny_model), "max_length": 64,
                                  "pack_tokens": "auto"})
        settled, _ = rehearsal.settle_memory(settings, None, resolve_model(str(tiny_model)), SFT(), 300,
                                             Memory.begin(torch.device("cpu")), lambda line: None)
        assert settled.pack_tokens == least
