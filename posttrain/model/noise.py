"""NEFTune: uniform noise on the embedding output while training, the same however the rows are laid out."""

from __future__ import annotations

import math

import torch

from ..core.seeds import seed_for

# SplitMix64 (Steele, Lea & Flood 2014): a counter times the golden ratio, mixed; int64 wraps as its arithmetic asks.
GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
MIXES = ((30, 0xBF58476D1CE4E5B9 - (1 << 64)), (27, 0x94D049BB133111EB - (1 << 64)), (31, None))
# Draws made at once: few enough to stay in a CPU's cache, many enough to fill a GPU.
PIECE = {"cpu": 1 << 16, "cuda": 1 << 24}


class EmbeddingNoise:
    """Adds to each token's embedding x_t of a sequence of L tokens, width d (Jain et al. 2023, algorithm 1):

        x_t + alpha / √(L·d) · ε_t,   ε_t uniform in [-1, 1]^d

    L is the sequence's own length, never a padded or packed one. ε is a function of (seed, update, the sequence's
    number in its update, position, channel): neither packs nor ranks change it (test_noise.py, test_layout.py). It is
    added where a forward has named its sequences by `expect`, which only training forwards do.
    """

    def __init__(self, embedding: torch.nn.Module, alpha: float, seed: int):
        self.alpha, self.seed, self.update = alpha, seed, 0
        self._sequences: tuple[list[int], list[int], int] | None = None
        embedding.register_forward_hook(self._add)

    def expect(self, numbers: list[int], lengths: list[int], padding: int = 0) -> None:
        """Name the sequences [S] of the next embedding call; `padding` tokens after them get no noise."""
        self._sequences = (numbers, lengths, padding)

    def _add(self, module, args, out_BTD):
        if self._sequences is None:
            return None
        (numbers, lengths, padding), self._sequences = self._sequences, None
        keys = [seed_for(self.seed, "neftune", self.update, n) for n in numbers]
        noise_TD = uniform(keys, lengths, out_BTD.shape[-1], out_BTD.device)
        scale_S = torch.tensor([self.alpha / math.sqrt(n * out_BTD.shape[-1]) for n in lengths], device=out_BTD.device)
        sizes_S = torch.tensor(lengths, device=out_BTD.device)
        noise_TD *= scale_S.repeat_interleave(sizes_S, output_size=sum(lengths))[:, None]
        return out_BTD + torch.nn.functional.pad(noise_TD, (0, 0, 0, padding)).to(out_BTD.dtype)


def uniform(keys: list[int], lengths: list[int], width: int, device: torch.device) -> torch.Tensor:
    """Uniform noise of S sequences end to end: keys [S], lengths [S] -> [T, width] float32 in [-1, 1].

    Token t of a sequence takes the draws t·h … t·h+h-1 of its key's stream, h = ⌈width / 2⌉, two numbers from each
    64-bit draw: the same bits on every device.
    """
    half = math.ceil(width / 2)
    sizes_S = torch.tensor(lengths, device=device)
    starts_S = sizes_S.cumsum(0) - sizes_S
    of_T = torch.arange(len(lengths), device=device).repeat_interleave(sizes_S, output_size=sum(lengths))
    at_T = torch.arange(of_T.shape[0], device=device) - starts_S[of_T]
    first_T = torch.tensor(keys, device=device)[of_T] + at_T * half * GOLDEN
    next_h = torch.arange(1, half + 1, device=device) * GOLDEN
    out_TD = torch.empty(of_T.shape[0], width, device=device)
    rows = max(1, PIECE.get(torch.device(device).type, 1 << 20) // half)
    for a in range(0, of_T.shape[0], rows):
        draws = _mixed(first_T[a:a + rows, None] + next_h)
        out_TD[a:a + rows] = draws.view(torch.int32)[:, :width]
    return out_TD.mul_(2.0 ** -31)


def _mixed(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer, in place; its shifts bring in zeros, torch's the sign."""
    shifted = torch.empty_like(z)
    for shift, factor in MIXES:
        torch.bitwise_right_shift(z, shift, out=shifted)
        z ^= shifted.bitwise_and_((1 << (64 - shift)) - 1)
        if factor is not None:
            z *= factor
    return z
