"""Choosing the next token from logits, with randomness that belongs to the prompt and the position alone."""

from __future__ import annotations

import numpy as np
import torch

_FIRST_TRY = 512  # candidates looked at before a nucleus is sorted out of the whole vocabulary


def uniform(seed: int, indices_B: np.ndarray, positions_B: np.ndarray) -> np.ndarray:
    """One number in [0, 1) per row, a hash of (seed, prompt index, position): [B] int, [B] int -> [B] float64.

    splitmix64 (Steele, Lea and Flood 2014) applied once per part of the key; no state, so nothing to save, and a
    row's numbers do not depend on the rows beside it (test_sample.py::test_sampling_ignores_the_rest_of_the_batch).
    """
    def mix(x: np.ndarray) -> np.ndarray:
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    with np.errstate(over="ignore"):
        key = mix(np.full(len(indices_B), seed % 2**64, dtype=np.uint64))
        key = mix(key ^ np.asarray(indices_B).astype(np.uint64))
        key = mix(key ^ np.asarray(positions_B).astype(np.uint64))
    return (key >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(logits_BV: torch.Tensor, uniform_B: torch.Tensor | None, temperature: float, top_k: int = 0,
         top_p: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each row and its log-prob: [B, V], [B] -> [B] int64, [B] float32 nats.

    At temperature 0 the largest logit; else the inverse of the distribution function at uniform_B, of
    softmax(z / temperature) cut to the `top_k` likeliest tokens, then to the fewest that hold `top_p` of the rest
    (Holtzman et al. 2020). The log-prob is that of the uncut softmax(z / temperature), temperature 0 counting as 1.
    """
    logits_BV = logits_BV.float()
    if temperature > 0 and temperature != 1.0:
        logits_BV = logits_BV / temperature
    norm_B = torch.logsumexp(logits_BV, -1)
    if temperature == 0:
        best_B, ids_B = logits_BV.max(-1)
        return ids_B, best_B - norm_B
    vocabulary = logits_BV.shape[-1]
    if top_k and top_k < vocabulary:
        top_BC, where_BC = logits_BV.topk(top_k)
        ids_B = _nucleus(top_BC, where_BC, torch.logsumexp(top_BC, -1), top_p, uniform_B)
    elif top_p < 1:
        top_BC, where_BC = logits_BV.topk(min(_FIRST_TRY, vocabulary))
        if bool(((top_BC - norm_B[:, None]).exp().sum(-1) < top_p).any()):
            top_BC, where_BC = logits_BV.sort(-1, descending=True)
        ids_B = _nucleus(top_BC, where_BC, norm_B, top_p, uniform_B)
    else:
        ids_B = _invert((logits_BV - norm_B[:, None]).exp(), uniform_B)
    return ids_B, logits_BV.gather(-1, ids_B[:, None])[:, 0] - norm_B


def _nucleus(top_BC: torch.Tensor, where_BC: torch.Tensor, norm_B: torch.Tensor, top_p: float,
             uniform_B: torch.Tensor) -> torch.Tensor:
    """Draw among the fewest of the candidates, likeliest first, that hold `top_p` of the mass exp(norm_B)."""
    probs_BC = (top_BC - norm_B[:, None]).exp()
    before_BC = probs_BC.cumsum(-1) - probs_BC
    kept_BC = probs_BC.masked_fill(before_BC >= top_p, 0.0)
    kept_BC[:, 0] = probs_BC[:, 0]
    return where_BC.gather(-1, _invert(kept_BC, uniform_B)[:, None])[:, 0]


def _invert(weights_BV: torch.Tensor, uniform_B: torch.Tensor) -> torch.Tensor:
    """First entry whose running sum exceeds uniform times the whole; float64, so that no entry of weight 0 is met."""
    sums_BV = weights_BV.double().cumsum(-1)
    target_B1 = uniform_B[:, None].to(sums_BV) * sums_BV[:, -1:]
    return torch.searchsorted(sums_BV, target_B1, right=True)[:, 0].clamp_(max=weights_BV.shape[-1] - 1)
