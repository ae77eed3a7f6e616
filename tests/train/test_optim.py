"""AdamW on float32 masters, against torch's own and by hand."""

import torch

from posttrain.model.halves import join, split, whole
from posttrain.train import optim
from posttrain.train.optim import MasterAdamW


def parameters(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (5, 7), "b": (7,), "v": (3, 2)}
    return {n: torch.nn.Parameter(torch.randn(s, generator=generator, dtype=dtype)) for n, s in shapes.items()}


def ours(named, **more):
    return MasterAdamW(named.items(), **({"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "weight_decay": 0.1} | more))


def gradients(step):
    generator = torch.Generator().manual_seed(step + 1)
    return {n: torch.randn(p.shape, generator=generator) for n, p in parameters().items()}


def test_equals_torch_adamw():
    mine, theirs = parameters(), parameters()
    optimizer = ours(mine)
    groups = [{"params": [theirs["w"], theirs["v"]], "weight_decay": 0.1},
              {"params": [theirs["b"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for step in range(5):
        optimizer.begin(1)
        for n, g in gradients(step).items():
            mine[n].grad, theirs[n].grad = g.clone(), g.clone()
        norm = optimizer.norm()
        expected = torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)
        assert torch.allclose(norm, expected)
        optimizer.step(0.01, 1.0, norm)
        reference.step()
    for n in mine:
        assert torch.allclose(mine[n], theirs[n], atol=1e-7), n


def test_masters_keep_what_bfloat16_would_lose():
    named = parameters()
    start = {n: p.detach().clone() for n, p in named.items()}
    optimizer = ours(named, weight_decay=0.0)
    optimizer.lower(torch.bfloat16)
    assert all(p.dtype == torch.bfloat16 for p in named.values())
    for _ in range(20):  # each update is far below bf16's resolution of a weight near 1
        optimizer.begin(1)
        for p in named.values():
            p.grad = torch.ones_like(p)
        optimizer.step(1e-4, 0.0, optimizer.norm())
    for i, (n, p) in enumerate(named.items()):
        assert torch.allclose(optimizer.master(i), start[n] - 20e-4, atol=2e-5)
        assert torch.equal(p.data, optimizer.master(i).to(torch.bfloat16))


def test_rounded_again_a_master_is_what_training_computed_with():
    """Ties, which `split` and torch round differently, are left by the first update."""
    halfway = torch.tensor([0x3F808000, 0x3F818000, -0x407F8000], dtype=torch.int32).view(torch.float32)
    named = {"w": torch.nn.Parameter(halfway.repeat(4, 1))}
    optimizer = ours(named, weight_decay=0.0)
    optimizer.lower(torch.bfloat16)
    assert not torch.equal(named["w"].data, halfway.repeat(4, 1).to(torch.bfloat16))
    optimizer.begin(1)
    named["w"].grad = torch.zeros(4, 3, dtype=torch.bfloat16)
    optimizer.step(1e-4, 0.0, optimizer.norm())
    assert torch.equal(named["w"].data, optimizer.master(0).to(torch.bfloat16))
    assert torch.allclose(optimizer.master(0), halfway, rtol=2**-23, atol=0)


def test_halves_are_exact():
    """A float32 and its two halves are the same bits: ties, denormals, zeros, both signs. The high one is rounded."""
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 3.0e38, -3.0e38, 1e-45, -1e-45, 1.17549435e-38])
    ties = (torch.arange(0x3F80, 0x3F90, dtype=torch.int32) << 16 | 0x8000).view(torch.float32)
    wide = torch.cat([special, ties, -ties, torch.randn(100_000, generator=torch.Generator().manual_seed(0))])
    high, low = torch.empty_like(wide, dtype=torch.bfloat16), torch.empty_like(wide, dtype=torch.int16)
    split(wide.clone(), high, low)
    assert torch.equal(join(high, low).view(torch.int32), wide.view(torch.int32))
    tie = (wide.view(torch.int32) & 0xFFFF) == 0x8000
    assert tie.sum() >= 32 and torch.equal(high[~tie], wide[~tie].to(torch.bfloat16))
    assert (high.float() - wide).abs().max() <= (wide.to(torch.bfloat16).float() - wide).abs().max()


def test_pieces_change_nothing(monkeypatch):
    found = []
    for piece in (1 << 19, 4):
        monkeypatch.setitem(optim.PIECE, "cpu", piece)
        named = parameters()
        optimizer = ours(named)
        optimizer.lower(torch.bfloat16)
        for step in range(3):
            optimizer.begin(1)
            for n, g in gradients(step).items():
                named[n].grad = g.to(torch.bfloat16)
            optimizer.step(0.01, 1.0, optimizer.norm())
        found.append([optimizer.master(i) for i in range(3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_one_pack_needs_no_sum():
    """One pack's gradient stays as it comes; several are summed in float32, not in bf16."""
    named = parameters()
    optimizer = ours(named)
    optimizer.lower(torch.bfloat16)
    optimizer.begin(1)
    named["w"].float().sum().backward()
    assert named["w"].grad.dtype == torch.bfloat16 and optimizer.gradients()[0] is named["w"].grad
    optimizer.begin(3)
    for scale in (256.0, 1.0, 1.0):
        (named["w"].float() * scale).sum().backward()
    assert optimizer.gradients()[0].dtype == torch.float32
    assert torch.equal(optimizer.gradients()[0], torch.full((5, 7), 258.0))  # bf16 would give 256


def test_restored_state_continues_bit_for_bit():
    def run(named, optimizer, steps):
        for step in steps:
            optimizer.begin(1)
            for n, g in gradients(step).items():
                named[n].grad = g.to(named[n].dtype)
            optimizer.step(0.01, 1.0, optimizer.norm())

    one = parameters()
    first = ours(one)
    first.lower(torch.bfloat16)
    run(one, first, range(3))
    saved = {f: {n: t.clone() for n, t in tensors.items()} for f, tensors in first.tensors().items()}
    assert all(torch.equal(whole(saved, n, one[n].shape), first.master(i)) for i, n in enumerate(one))
    assert saved["weights"]["w"].dtype == torch.bfloat16 and saved["halves"]["w"].dtype == torch.int16
    run(one, first, range(3, 6))
    two = parameters()
    second = ours(two)
    second.restore(saved, 3)
    second.lower(torch.bfloat16)
    run(two, second, range(3, 6))
    for i in range(3):
        assert torch.equal(first.master(i), second.master(i))
    for n in one:
        assert torch.equal(one[n], two[n])
