"""Odds ratio preference optimization: supervised fine-tuning and preferences at once, without a reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ..pairs import PairObjective, answer_lengths, answer_sums, pairs


def log_odds(mean_logprob: torch.Tensor) -> torch.Tensor:
    """log(p / (1 − p)) of p = exp(x), x < 0, stable at both ends (Mächler 2012, eq. 7)."""
    x = mean_logprob.clamp(max=-1e-9)  # p = 1 would have infinite odds
    near = x > -math.log(2)
    rest = torch.where(near, torch.log(-torch.expm1(torch.where(near, x, -1.0))),
                       torch.log1p(-torch.exp(torch.where(near, -1.0, x))))
    return x - rest


class ORPO(PairObjective):
    """loss_p = −x_w − β log σ(log odds(x_w) − log odds(x_l)),   mean over pairs p (Hong et al. 2024, eq. 6 and 7).

    x is an answer's mean log-prob per token, so the first term is the loss of supervised fine-tuning on the better
    answer; β is the paper's λ. Equals TRL's odds ratio loss (tests/train/test_preference_losses.py).
    """

    def __init__(self, beta: float = 0.1):
        self.beta = beta

    @classmethod
    def of(cls, settings):
        return cls(settings.beta)

    def loss(self, out, pack):
        better, worse = pairs(pack)
        x_S = answer_sums(out.logprobs_T, pack) / answer_lengths(pack)
        ratio_P = log_odds(x_S[better]) - log_odds(x_S[worse])
        nll_P = -x_S[better]
        return (nll_P - self.beta * F.logsigmoid(ratio_P)).sum(), {
            "accuracy": (ratio_P > 0).sum(), "log_odds_ratio": ratio_P.sum(), "nll": nll_P.sum()}
