"""Packed attention equals the model's own, per sequence; what it does not know it refuses."""

import pytest
import torch

from posttrain.model import attention
from posttrain.model.attention import Layout, UnknownAttention, attend, set_layout


def reference(q, k, v, bounds, scale, window=None, softcap=None, sinks=None):
    """Float64, one sequence and one head at a time, straight from the definition."""
    q, k, v = (x[0].double() for x in (q, k, v))
    out = torch.zeros(q.shape[1], q.shape[0], v.shape[-1], dtype=torch.float64)
    groups = q.shape[0] // k.shape[0]
    for a, b in zip(bounds, bounds[1:], strict=False):
        for h in range(q.shape[0]):
            for i in range(a, b):
                first = a if window is None else max(a, i - window + 1)
                scores = (k[h // groups, first:i + 1] @ q[h, i]) * scale
                if softcap:
                    scores = softcap * torch.tanh(scores / softcap)
                if sinks is not None:
                    scores = torch.cat([scores, sinks[h].double().view(1)])
                weights = scores.softmax(0)[:i + 1 - first]
                out[i, h] = weights @ v[h // groups, first:i + 1]
    return out


def tensors(total, heads=4, kv=2, width=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, n, total, width, generator=generator).to(dtype).requires_grad_() for n in (heads, kv, kv)]


BOUNDS = [0, 5, 6, 19, 24, 60, 73]


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"softcap": 2.0}, {"window": 6, "softcap": 1.5},
                                     {"sinks": torch.tensor([0.3, -1.0, 2.0, 0.0])}], ids=str)
def test_equals_the_definition(options):
    q, k, v = tensors(BOUNDS[-1])
    set_layout(Layout(BOUNDS, torch.device("cpu")))
    out, _ = attend(None, q, k, v, scaling=0.3, sliding_window=options.get("window"), softcap=options.get("softcap"),
                    s_aux=options.get("sinks"))
    expected = reference(q, k, v, BOUNDS, 0.3, **options)
    assert out.shape == (1, BOUNDS[-1], 4, 8)
    assert (out[0] - expected).abs().max() < 1e-12


def test_gradient_of_one_pack_is_that_of_single_sequences():
    grads = []
    for groups in ([list(range(6))], [[i] for i in range(6)]):
        q, k, v = tensors(BOUNDS[-1])
        total = 0
        for group in groups:
            a, b = BOUNDS[group[0]], BOUNDS[group[-1] + 1]
            set_layout(Layout([x - a for x in BOUNDS[group[0]:group[-1] + 2]], torch.device("cpu")))
            out, _ = attend(None, *(x[:, :, a:b] for x in (q, k, v)))
            total = total + (out * torch.arange(a, b)[None, :, None, None].cos()).sum()
        total.backward()
        grads.append(torch.cat([x.grad.flatten() for x in (q, k, v)]))
    assert (grads[0] - grads[1]).abs().max() < 1e-12


def test_short_products_equal_the_fused_kernel(monkeypatch):
    """On CPU in bf16 short sequences take three plain products; they differ from the fused kernel by rounding alone."""
    found = []
    for short in (256, 0):
        monkeypatch.setattr(attention, "SHORT", short)
        q, k, v = tensors(BOUNDS[-1], dtype=torch.bfloat16)
        set_layout(Layout(BOUNDS, torch.device("cpu")))
        out, _ = attend(None, q, k, v, sliding_window=7)
        out.float().square().sum().backward()
        found.append([out.detach().float(), *(x.grad.float() for x in (q, k, v))])
    exact = reference(*tensors(BOUNDS[-1], dtype=torch.bfloat16), BOUNDS, 8 ** -0.5, window=7)
    for one, two in zip(*found, strict=True):
        assert (one - two).abs().max() <= 0.03 * two.abs().max()
    assert (found[0][0][0] - exact).abs().max() < 0.02


def test_unknown_keyword_raises():
    q, k, v = tensors(BOUNDS[-1])
    set_layout(Layout(BOUNDS, torch.device("cpu")))
    with pytest.raises(UnknownAttention, match="unknown attention keyword: alibi_slopes"):
        attend(None, q, k, v, alibi_slopes=torch.ones(4))
    with pytest.raises(UnknownAttention, match="a mask or position bias"):
        attend(None, q, k, v, torch.ones(1, 1, 73, 73))
    with pytest.raises(UnknownAttention, match="layout is not set"):
        attend(None, q[:, :, :9], k[:, :, :9], v[:, :, :9])


def test_like_lengths_share_a_batch():
    layout = Layout([0, 10, 22, 30, 31], torch.device("cpu"))
    assert layout.batches == [(2, 12), (1, 8), (1, 1)]
    assert layout.spread.tolist() == [*range(10, 22), *range(10), 9, 9, *range(22, 30), 30]
    assert layout.back.tolist() == [*range(12, 22), *range(12), *range(24, 32), 32]
    assert Layout([0, 10, 20], torch.device("cpu")).spread is None


def test_batches_are_laid_out_when_asked_for(monkeypatch):
    """The varlen kernel of CUDA asks only for the bounds; building gathers for it would be work for nothing."""
    built, real = [], Layout._rows
    monkeypatch.setattr(Layout, "_rows", lambda self, *group: built.append(group) or real(self, *group))
    layout = Layout([0, 10, 22, 30, 31], torch.device("cpu"))
    set_layout(layout)
    assert layout.bounds[-1] == 31 and not built
    assert len(layout.batches) == 3 and len(built) == 3
    assert layout.spread is layout.spread and layout.back.shape == (31,) and len(built) == 3  # once


def test_few_shapes_change_nothing():
    """Batches of fixed shapes and a filled-up stream give the same output and gradient, and the filling gives none."""
    found = []
    for few, padding in ((False, 0), (True, 7)):
        q, k, v = tensors(BOUNDS[-1] + padding)
        with torch.no_grad():
            for x, y in zip((q, k, v), tensors(BOUNDS[-1]), strict=True):
                x[:, :, :BOUNDS[-1]] = y
        set_layout(Layout(BOUNDS, torch.device("cpu"), few_shapes=few, padding=padding))
        out, _ = attend(None, q, k, v, sliding_window=9)
        out.square().sum().backward()
        assert not out[0, BOUNDS[-1]:].any() and not q.grad[:, :, BOUNDS[-1]:].any()
        found.append([out[:, :BOUNDS[-1]].detach(), *(x.grad[:, :, :BOUNDS[-1]] for x in (q, k, v))])
    for one, two in zip(*found, strict=True):
        assert (one - two).abs().max() < 1e-12


def test_shapes_are_few():
    shapes = set()
    for seed in range(40):
        sizes = torch.randint(1, 257, (20,), generator=torch.Generator().manual_seed(seed)).tolist()
        layout = Layout([0, *torch.tensor(sizes).cumsum(0).tolist()], torch.device("cpu"), few_shapes=True)
        shapes |= set(layout.batches)
    assert {length for _, length in shapes} <= set(attention.LENGTHS)
    assert {count for count, _ in shapes} <= set(attention.COUNTS)


def test_long_sequences_have_few_lengths():
    sizes = torch.randint(257, 1200, (60,), generator=torch.Generator().manual_seed(0)).tolist()
    layout = Layout([0, *torch.tensor(sizes).cumsum(0).tolist()], torch.device("cpu"), few_shapes=True)
    found = [length for count, length in layout.batches for _ in range(count)]
    assert all(length % attention.LONG == 0 for length in found) and len(set(found)) <= 15
    assert all(0 <= length - size < attention.LONG for length, size in zip(found, sorted(sizes, reverse=True),
                                                                           strict=True))
