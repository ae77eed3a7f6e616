"""The CUDA paths against the CPU's: packed attention by the varlen kernel, the load probe, and one whole run."""

import pytest
import torch

import posttrain
from posttrain.model.attention import Layout, attend, set_layout
from posttrain.model.load import load_causal
from posttrain.model.probe import prepare_forward
from posttrain.model.resolve import resolve_model

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BOUNDS = [0, 5, 6, 19, 24, 160, 473]


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("dtype", "close"), [(torch.bfloat16, 2e-2), (torch.float32, 1e-4)], ids=str)
def test_packed_attention_equals_the_cpu_in_float64(dtype, close, window):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(1, heads, BOUNDS[-1], 64, generator=generator).to(dtype) for heads in (8, 2, 2)]
    found = []
    for device, kind in (("cpu", torch.float64), ("cuda", dtype)):
        q, k, v = (x.to(device, kind).requires_grad_() for x in made)
        set_layout(Layout(BOUNDS, torch.device(device)))
        out, _ = attend(None, q, k, v, sliding_window=window)
        out.double().square().sum().backward()
        found.append([x.detach().double().cpu() for x in (out, q.grad, k.grad, v.grad)])
    for exact, other in zip(*found, strict=True):
        assert (exact - other).norm() <= close * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_embedded_model_packs(dtype):
    forward, _ = prepare_forward(load_causal(resolve_model("builtin"), dtype=dtype, device="cuda"))
    assert forward.flat


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_a_run_learns_and_answers(method, tmp_path):
    run = posttrain.sft(method=method, device="cuda", max_steps=20, learning_rate=1e-3, output_dir=tmp_path / "run")
    losses = [line["loss"] for line in run.metrics]
    assert losses[-1] < 0.8 * losses[0]
    assert run.chat("Where does a salmon live?")
