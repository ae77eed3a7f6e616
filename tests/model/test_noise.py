"""NEFTune's noise: the paper's support, scale and independence, a pinned stream, and none of it outside training."""

import math

import pytest
import torch

from posttrain.core.seeds import seed_for
from posttrain.model import noise as module
from posttrain.model.noise import GOLDEN, EmbeddingNoise, _mixed, uniform


def test_the_stream_is_splitmix64():
    """The published draws of seed 1234567 (Vigna's reference implementation)."""
    state = torch.tensor([1234567 + (i + 1) * GOLDEN & 2**64 - 1 for i in range(5)], dtype=torch.uint64)
    assert [z % 2**64 for z in _mixed(state.view(torch.int64)).tolist()] == [
        6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]


def test_two_numbers_of_each_draw_by_position_and_channel():
    noise_TD = uniform([1234567, 7], [2, 3], 5, "cpu")  # three draws a token, the last half of the third unused
    first = 6457827717110365317
    low, high = ((first >> shift & 2**32 - 1) for shift in (0, 32))
    signed = [(x - 2**32 if x >= 2**31 else x) / 2**31 for x in (low, high)]
    assert noise_TD.shape == (5, 5) and noise_TD[0, :2].tolist() == pytest.approx(signed, abs=1e-7)
    fourth = 4593380528125082431 & 2**32 - 1
    assert noise_TD[1, 0].item() == pytest.approx((fourth - 2**32 if fourth >= 2**31 else fourth) / 2**31, abs=1e-7)


def test_it_is_uniform_and_independent():
    noise = uniform([seed_for(1, "neftune", 1, n) for n in range(64)], [64] * 64, 128, "cpu").double()
    assert -1 <= noise.min() < -0.9999 and 0.9999 < noise.max() <= 1
    count = noise.numel()
    ordered = noise.flatten().sort().values
    expected = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1
    assert (ordered - expected).abs().max() / 2 < 1.95 / math.sqrt(count)  # Kolmogorov-Smirnov, p = 0.001
    assert noise.mean().abs() < 4 * math.sqrt(1 / 3 / count)
    assert (noise.var() - 1 / 3).abs() < 4 * 0.3 / math.sqrt(count)
    for one, two in ((noise[:, ::2], noise[:, 1::2]), (noise[1:], noise[:-1]), (noise[64:], noise[:-64])):
        correlation = (one * two).mean() * 3
        assert correlation.abs() < 4 / math.sqrt(one.numel())  # of channels, of positions, of sequences


def test_neither_neighbours_nor_pieces_change_it(monkeypatch):
    whole = uniform([5, 6, 7], [30, 4, 11], 24, "cpu")
    assert torch.equal(whole[30:34], uniform([6], [4], 24, "cpu"))
    assert torch.equal(whole[:20], uniform([5], [20], 24, "cpu"))  # the position is the key, not the length
    monkeypatch.setitem(module.PIECE, "cpu", 50)
    assert torch.equal(whole, uniform([5, 6, 7], [30, 4, 11], 24, "cpu"))
    assert not torch.equal(whole[:4], whole[30:34])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_scale_and_support_are_the_sequence_s_own(dtype):
    """alpha / √(L·d) bounds the noise of each sequence whatever lies beside it, and is reached."""
    embedding = torch.nn.Embedding(10, 64).to(dtype)
    torch.nn.init.zeros_(embedding.weight)
    noise = EmbeddingNoise(embedding, alpha=5.0, seed=3)
    noise.update = 2
    noise.expect([4, 0, 9], [100, 7, 31], padding=3)
    out = embedding(torch.ones(1, 141, dtype=torch.long))[0]
    assert out.dtype == dtype and not out[138:].any()
    for a, b in ((0, 100), (100, 107), (107, 138)):
        bound = 5 / math.sqrt((b - a) * 64)
        assert 0.97 * bound < out[a:b].abs().max() <= bound * (1 + torch.finfo(dtype).eps)
        assert out[a:b].float().var().item() == pytest.approx(bound**2 / 3, rel=0.12)
    assert not embedding(torch.ones(1, 5, dtype=torch.long)).any()  # named once, used once


def test_every_part_of_the_key_counts():
    def drawn(seed=1, update=1, number=0):
        embedding = torch.nn.Embedding(2, 8)
        noise = EmbeddingNoise(embedding, alpha=1.0, seed=seed)
        noise.update = update
        noise.expect([number], [5])
        return (embedding(torch.zeros(1, 5, dtype=torch.long)) - embedding.weight[0]).detach()

    first = drawn()
    for other in (drawn(seed=2), drawn(update=2), drawn(number=1)):
        assert (first - other).abs().max() > 0.1
