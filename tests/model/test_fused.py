"""Norms and gated MLPs of our own against the modules' own forwards and against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import GemmaConfig, LlamaConfig, Qwen3Config
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3MLP, Qwen3RMSNorm

from posttrain.model import fused

SMALL = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 2}


def gradients(module, rows, grad):
    """Output, and the gradients of the input and of every parameter, in float64."""
    rows = rows.clone().requires_grad_()
    module.zero_grad()
    out = module(rows)
    out.backward(grad)
    return [t.detach().double() for t in (out, rows.grad, *(p.grad for p in module.parameters()))]


def distance(found, expected):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True))


def norm(dtype, width=24):
    torch.manual_seed(1)
    made = Qwen3RMSNorm(width, 1e-5).to(dtype)
    torch.nn.init.uniform_(made.weight, 0.5, 1.5)
    return made


def float64_norm(module, rows, grad):
    """The formula written out in float64."""
    rows, weight = rows.double().requires_grad_(), module.weight.detach().double().requires_grad_()
    out = weight * rows * (rows.pow(2).mean(-1, keepdim=True) + 1e-5).rsqrt()
    out.backward(grad.double())
    return [out.detach(), rows.grad, weight.grad]


def test_the_norm_is_its_formula():
    own = norm(torch.float32)
    mine = copy.deepcopy(own)
    assert fused.fuse(mine) == 1
    rows, grad = torch.randn(2, 7, 24), torch.randn(2, 7, 24)
    assert distance(gradients(mine, rows, grad), float64_norm(own, rows, grad)) < 1e-6


@pytest.mark.parametrize("width", [64, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_norm_is_the_modules_own_to_the_bit_and_its_gradient_closer_to_float64(dtype, width):
    own = norm(dtype, width)
    mine = copy.deepcopy(own)
    assert fused.fuse(mine) == 1
    rows, grad = torch.randn(400, width).to(dtype), torch.randn(400, width).to(dtype)
    exact = float64_norm(own, rows, grad)[1:]
    (out, *found), (expected, *theirs) = gradients(mine, rows, grad), gradients(own, rows, grad)
    assert torch.equal(out, expected)
    if dtype != torch.float32:
        assert distance(found, exact) < distance(theirs, exact) < 1e-2


def test_the_size_of_a_piece_changes_nothing(monkeypatch):
    mine = norm(torch.float32)
    fused.fuse(mine)
    rows, grad = torch.randn(50, 24), torch.randn(50, 24)
    whole = gradients(mine, rows, grad)
    monkeypatch.setattr(fused, "PIECE", 7 * 24)
    cut = gradients(mine, rows, grad)
    assert torch.equal(whole[0], cut[0]) and torch.equal(whole[1], cut[1])
    assert distance(cut, whole) < 1e-6  # the weight's gradient is summed in another order


@pytest.mark.parametrize("kind", [Qwen3MLP, LlamaMLP])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mlp_is_the_modules_own(kind, dtype):
    torch.manual_seed(2)
    own = kind((Qwen3Config if kind is Qwen3MLP else LlamaConfig)(**SMALL)).to(dtype)
    mine = copy.deepcopy(own)
    assert fused.fuse(mine) == 1
    rows, grad = torch.randn(2, 9, 24).to(dtype), torch.randn(2, 9, 24).to(dtype)
    found, expected = gradients(mine, rows, grad), gradients(own, rows, grad)
    assert torch.equal(found[0], expected[0])
    assert distance(found, expected) < (1e-6 if dtype == torch.float32 else 1e-2)


def test_the_mlp_under_recomputation_and_with_a_frozen_down():
    torch.manual_seed(3)
    own = LlamaMLP(LlamaConfig(**SMALL))
    mine = copy.deepcopy(own)
    fused.fuse(mine)
    rows, grad = torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    expected = gradients(own, rows, grad)
    rows = rows.clone().requires_grad_()
    found = checkpoint(mine, rows, use_reentrant=False)
    found.backward(grad)
    assert distance([rows.grad.double()], [expected[1]]) < 1e-6
    mine.zero_grad()
    mine.down_proj.requires_grad_(False)
    mine(rows).backward(grad)
    assert mine.down_proj.weight.grad is None
    assert distance([mine.gate_proj.weight.grad.double()], [expected[2]]) < 1e-6


def test_an_adapted_down_projection_is_called():
    peft = pytest.importorskip("peft")
    torch.manual_seed(4)
    own = LlamaMLP(LlamaConfig(**SMALL))
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(r=4, target_modules=["down_proj"], init_lora_weights=False),
                                           own)
    mine = copy.deepcopy(adapted)
    assert fused.fuse(mine) == 1
    rows, grad = torch.randn(2, 9, 24), torch.randn(2, 9, 24)

    def adapters(module):
        module.zero_grad()
        module(rows).backward(grad)
        return [p.grad.double() for n, p in module.named_parameters() if "lora_" in n]

    assert len(adapters(mine)) == 2
    assert distance(adapters(mine), adapters(adapted)) < 1e-6


def test_what_differs_keeps_its_own():
    model = torch.nn.Sequential(GemmaRMSNorm(24), GemmaMLP(GemmaConfig(**SMALL)), torch.nn.LayerNorm(24),
                                LlamaRMSNorm(24).double())
    assert fused.fuse(model) == 0
    assert all("forward" not in vars(m) for m in model)


def test_less_is_kept_for_the_backward():
    kept = []

    def bytes_kept(module):
        kept.clear()
        rows = torch.randn(64, 24).bfloat16().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.nbytes) or t, lambda t: t):
            module(rows)
        return sum(kept)

    own = norm(torch.bfloat16)
    mine = copy.deepcopy(own)
    fused.fuse(mine)
    rows = 64 * 24
    assert bytes_kept(mine) == 2 * rows + 4 * 64 + 2 * 24  # the input, one number per row, the weight
    assert bytes_kept(own) >= 6 * rows
