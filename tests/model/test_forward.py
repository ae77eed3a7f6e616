"""Log-probs of the targets, in chunks, against full logits in float64."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from posttrain.core.pack import Pack
from posttrain.model.forward import Head, target_stats, token_logprobs
from posttrain.model.probe import _probe_packs, prepare_forward


def model(dtype=torch.float64):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                        num_attention_heads=4, num_key_value_heads=2)).to(dtype)


def test_every_statistic_equals_full_logits():
    causal = model()
    forward, _ = prepare_forward(causal)
    pack, _ = _probe_packs(300, "cpu")
    pack.weights_T[3:6] = 0
    out = forward(pack, {"logprobs", "entropy", "mean_logprob"})
    causal.set_attn_implementation("eager")
    for a, b in zip(pack.bounds, pack.bounds[1:], strict=False):
        log_p = causal(input_ids=pack.ids_T[None, a:b]).logits[0].log_softmax(-1)
        kept = pack.weights_T[a:b] != 0
        expected = log_p.gather(1, pack.targets_T[a:b, None])[:, 0] * kept
        assert torch.allclose(out.logprobs_T[a:b], expected, atol=1e-12)
        assert torch.allclose(out.entropy_T[a:b], -(log_p.exp() * log_p).sum(-1) * kept, atol=1e-12)
        assert torch.allclose(out.mean_logprob_T[a:b], log_p.mean(-1) * kept, atol=1e-12)


def test_chunk_changes_nothing():
    causal = model()
    head = Head(causal)
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, 300, (37,), generator=generator)
    found = []
    for chunk in (1000, 37, 10, 1):
        causal.zero_grad()
        hidden = torch.randn(37, 32, generator=torch.Generator().manual_seed(4), dtype=torch.float64).requires_grad_()
        (logprobs,) = token_logprobs(hidden, head, targets, chunk=chunk)
        (logprobs * torch.linspace(-1, 1, 37)).sum().backward()
        found.append((logprobs.detach(), hidden.grad, causal.lm_head.weight.grad.clone()))
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            assert torch.allclose(one, two, rtol=1e-12, atol=1e-14)


def test_dropout_in_the_head_is_recomputed_as_it_was():
    """LoRA on the head drops inputs; a chunk's backward must see the mask of its forward (finite difference)."""
    causal = model()
    head = Head(causal)
    head.module = torch.nn.Sequential(torch.nn.Dropout(0.5), causal.lm_head)
    hidden = torch.randn(12, 32, dtype=torch.float64).requires_grad_()
    sums = []
    for step in (0.0, 1e-6):
        torch.manual_seed(5)
        (logprobs,) = token_logprobs(hidden + step, head, torch.arange(12), chunk=4)
        sums.append(logprobs.sum())
    torch.manual_seed(99)
    (grad,) = torch.autograd.grad(sums[0], hidden)
    assert abs((sums[1] - sums[0]).item() / 1e-6 - grad.sum().item()) < 1e-3


def test_temperature_divides_the_logits():
    causal = model()
    hidden = torch.randn(4, 32, dtype=torch.float64)
    targets = torch.tensor([1, 2, 3, 4])
    (found,) = token_logprobs(hidden, Head(causal), targets, temperature=0.5)
    expected = (causal.lm_head(hidden) / 0.5).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_other_statistics_leave_the_logprobs_as_they_are(dtype):
    logits = torch.randn(50, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    targets = torch.arange(50)
    for temperature in (1.0, 0.7):
        (alone,) = target_stats(logits, targets, {"logprobs"}, temperature)
        with_others = target_stats(logits, targets, {"logprobs", "entropy", "mean_logprob"}, temperature)
        assert torch.equal(alone, with_others[0]) and len(with_others) == 3


def test_the_gradient_at_a_temperature():
    logits = torch.randn(6, 30, dtype=torch.float64, requires_grad=True)
    before = logits.detach().clone()
    targets, weights = torch.arange(6), torch.linspace(-1, 1, 6, dtype=torch.float64)
    for temperature in (1.0, 0.6):
        (found,) = target_stats(logits, targets, {"logprobs"}, temperature)
        (grad,) = torch.autograd.grad((found * weights).sum(), logits)
        plain = (logits / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0]
        (expected,) = torch.autograd.grad((plain * weights).sum(), logits)
        assert torch.allclose(grad, expected, atol=1e-14) and torch.equal(logits, before)


def test_temperature_divides_after_widening():
    """Two-byte logits are divided in float32: in their own type the quotient would be rounded once more."""
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)).mul_(8).bfloat16()
    targets = torch.arange(6)
    expected = (logits.double() / 0.7).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    (found,) = target_stats(logits, targets, {"logprobs"}, temperature=0.7)
    rounded = (logits / 0.7).float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (found - expected).abs().max() < 1e-5 and (rounded - expected).abs().max() > 1e-3


def test_a_pack_that_trains_nothing():
    causal = model()
    forward, _ = prepare_forward(causal)
    pack = _probe_packs(300, "cpu")[0]
    pack.weights_T[:] = 0
    with torch.no_grad():
        assert not forward(pack).logprobs_T.any()
        causal.set_attn_implementation("sdpa")
        forward.flat = False
        assert not forward(pack).logprobs_T.any()


def test_logits_only_where_weights_are_not_zero():
    """The head sees the trained positions and no other: a large vocabulary costs what the answers cost."""
    causal = model(torch.float32)
    forward, _ = prepare_forward(causal)
    pack: Pack = _probe_packs(300, "cpu")[0]
    pack.weights_T[:20] = 0
    rows = []
    causal.lm_head.register_forward_hook(lambda m, args, out: rows.append(args[0].shape[0]))
    forward(pack)
    assert rows == [int((pack.weights_T != 0).sum())]
