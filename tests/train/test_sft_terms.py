"""The fine-tuning objective: smoothing as torch has it, and the loss of each source from the same forward."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.core.pack import make_pack
from posttrain.core.sequence import Sequence
from posttrain.model.probe import prepare_forward
from posttrain.train.objective import Models
from posttrain.train.objectives.sft import SFT
from posttrain.train.update import accumulate, evaluate

VOCAB = 120


@pytest.fixture
def forward():
    torch.manual_seed(0)
    made = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
                                        num_attention_heads=4)).double()
    return prepare_forward(made)[0]


def sequences(sources=(0, 1, 0, 1, 1)):
    rng = np.random.default_rng(1)
    made = []
    for number, source in enumerate(sources):
        size = 9 + 5 * number
        weights = np.r_[0, rng.random(size - 1) < 0.5].astype(np.float32)
        made.append(Sequence(rng.integers(0, VOCAB, size).astype(np.int32), weights, np.zeros(size, np.uint8), "r:1",
                             source, number=number))
    return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_smoothing_is_torch_s(forward, smoothing):
    """Loss and gradient equal cross_entropy(label_smoothing=…) over the model's own logits, in float64."""
    rows, causal = sequences(), forward.causal
    means = accumulate(Models(forward), SFT(smoothing), [make_pack(rows[:2]), make_pack(rows[2:])], seed=0, step=1)
    found = torch.cat([p.grad.flatten() for p in causal.parameters()])
    causal.zero_grad()
    causal.set_attn_implementation("sdpa")
    logits, targets = [], []
    for s in rows:
        ids = torch.from_numpy(s.ids).long()
        logits.append(causal(input_ids=ids[None]).logits[0, :-1])
        targets.append(torch.where(torch.from_numpy(s.weights) > 0, ids, -100)[1:])
    logits, targets = torch.cat(logits), torch.cat(targets)
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
    expected.backward()
    assert means["loss"] == pytest.approx(expected.item(), rel=1e-12)
    wanted = torch.cat([p.grad.flatten() for p in causal.parameters()])
    assert (found - wanted).norm() < 1e-9 * wanted.norm()
    plain = torch.nn.functional.cross_entropy(logits, targets).item()
    if smoothing:
        assert means["nll"] == pytest.approx(plain, rel=1e-12) != pytest.approx(means["loss"], rel=1e-6)
    else:
        assert set(means) == {"loss"}
    forward.causal.set_attn_implementation("posttrain")
    held = evaluate(Models(forward), SFT(smoothing), [make_pack(rows)])["loss"]
    assert held == pytest.approx(plain, rel=1e-12)  # held-out rows are judged without smoothing


def test_each_source_has_its_own_mean(forward):
    """Per source: the loss of its rows alone, over its own tokens; the means weighted by tokens give the whole."""
    rows = sequences()
    packs = [make_pack(rows[3:]), make_pack(rows[:3])]
    means = accumulate(Models(forward), SFT(sources=["a.jsonl", "b.txt@0.2", "c.jsonl"]), packs, seed=0, step=1)
    assert set(means) == {"loss", "loss/a.jsonl", "loss/b.txt@0.2"}  # no row of c.jsonl in this update
    total = 0.0
    for source, name in enumerate(("a.jsonl", "b.txt@0.2")):
        mine = [s for s in rows if s.source == source]
        alone = evaluate(Models(forward), SFT(), [make_pack(mine)])
        assert means[f"loss/{name}"] == pytest.approx(alone["loss"], rel=1e-12)
        total += alone["loss"] * alone["units"]
    assert means["loss"] == pytest.approx(total / sum(s.weights.sum() for s in rows), rel=1e-12)
    smoothed = accumulate(Models(forward), SFT(0.1, ["a.jsonl", "b.txt@0.2"]), packs, seed=0, step=1)
    weights = [sum(s.weights.sum() for s in rows if s.source == i) for i in (0, 1)]
    parts = [smoothed[f"loss/{name}"] for name in ("a.jsonl", "b.txt@0.2")]
    assert smoothed["loss"] == pytest.approx(np.dot(parts, weights) / sum(weights), rel=1e-12)


def test_a_source_named_twice_is_one(forward):
    rows = sequences()
    means = accumulate(Models(forward), SFT(sources=["a", "a"]), [make_pack(rows)], seed=0, step=1)
    assert means["loss/a"] == pytest.approx(means["loss"], rel=1e-12)
