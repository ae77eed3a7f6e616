"""The arithmetic of reinforcement learning on answers: KL estimators, GAE, group baselines, clipped objectives.

Shapes beyond core/pack.py: N the tokens of the longest answer, K all answers' tokens end to end. Everything here is
held to float64 computations by hand in tests/train/test_advantages.py.
"""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from ..core import ranks

EPSILON = 1e-8


def kl_k1(policy_K: torch.Tensor, reference_K: torch.Tensor) -> torch.Tensor:
    """KL(policy ‖ reference) per token from the policy's own samples: [K], [K] log-probs -> [K] nats, unbiased.

        k1 = log π(y) − log π_ref(y)                                (Schulman 2020, "Approximating KL Divergence")
    """
    return policy_K - reference_K


def kl_k3(policy_K: torch.Tensor, reference_K: torch.Tensor) -> torch.Tensor:
    """The same, never negative and of lower variance: [K], [K] log-probs -> [K] nats.

        k3 = e^d − 1 − d,   d = log π_ref(y) − log π(y)             (Schulman 2020)
    """
    log_ratio_K = reference_K - policy_K
    return torch.expm1(log_ratio_K) - log_ratio_K


def flat(parts: Many[torch.Tensor]) -> torch.Tensor:
    """Tensors end to end; of none, as in a process that has no answer, [0]."""
    return torch.cat(list(parts)) if parts else torch.zeros(0)


def by_answer(flat_K: torch.Tensor, lengths: Many[int]) -> torch.Tensor:
    """[K] end to end -> [S, N], zeros after each answer's end."""
    return torch.nn.utils.rnn.pad_sequence(list(flat_K.split(list(lengths))), batch_first=True)


def end_to_end(padded_SN: torch.Tensor, lengths: Many[int]) -> torch.Tensor:
    """[S, N] -> [K], the inverse of `by_answer`."""
    return torch.cat([row[:n] for row, n in zip(padded_SN, lengths, strict=True)])


def gae(rewards_K: torch.Tensor, values_K: torch.Tensor, lengths: Many[int], *, lam: float,
        gamma: float = 1.0) -> torch.Tensor:
    """Generalised advantage estimates of every token; [K] rewards, [K] values before each token -> [K].

        δ_t = r_t + γ V_{t+1} − V_t,   A_t = δ_t + γ λ A_{t+1},   V and A 0 after the last token
    (Schulman et al. 2016, eq. 16). An answer that was cut off ends there too, as one that stopped by itself.
    """
    rewards_SN, values_SN = by_answer(rewards_K, lengths), by_answer(values_K, lengths)
    advantages_SN = torch.zeros_like(rewards_SN)
    after_S = next_S = rewards_SN.new_zeros(len(rewards_SN))
    for t in range(rewards_SN.shape[1] - 1, -1, -1):
        delta_S = rewards_SN[:, t] + gamma * next_S - values_SN[:, t]
        after_S, next_S = delta_S + gamma * lam * after_S, values_SN[:, t]
        advantages_SN[:, t] = after_S
    return end_to_end(advantages_SN, lengths)


def moments(values: torch.Tensor) -> tuple[float, float, float]:
    """(count, mean, variance) of numbers over all processes, float64."""
    values = values.double()
    count, total = ranks.add_up([values.numel(), float(values.sum())])
    (squares,) = ranks.add_up([float(((values - total / count) ** 2).sum())])
    return count, total / count, squares / count


def whiten(advantages_K: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 over every token of the collection: [K] -> [K].

    Over all of them, not over a minibatch or a rank: how answers are dealt changes nothing
    (test_advantages.py::test_whitening_is_over_everything).
    """
    _, mean, variance = moments(advantages_K)
    return (advantages_K - mean) / (variance + EPSILON) ** 0.5


def group_advantages(scores_S: torch.Tensor, group: int, kind: str) -> torch.Tensor:
    """What each answer of a group was worth beside the others: [S] scores, groups of `group` adjacent -> [S].

        grpo     (r − mean) / std of the group                      (Shao et al. 2024, eq. 3 ff.)
        dr_grpo   r − mean                                           (Liu et al. 2025: no division by std)
        batch    (r − mean) / std of all r − mean in the collection  (Hu et al. 2025, REINFORCE++-baseline)
        rloo      r − mean of the others                             (Ahmadian et al. 2024, eq. 8)
    A group whose scores are equal teaches nothing: all its advantages are 0. So is that of an answer without a score
    (NaN), and the others of its group are held against each other alone.
    """
    scores_GN = scores_S.view(len(scores_S) // group, group)
    scores_GN = scores_GN - scores_GN.nanmedian(1, keepdim=True).values  # equals are exactly 0, whatever their mean is
    count_G1 = (~scores_GN.isnan()).sum(1, keepdim=True).to(scores_S.dtype)
    centred_GN = scores_GN - scores_GN.nanmean(1, keepdim=True)
    if kind == "rloo":
        centred_GN = centred_GN * (count_G1 / (count_G1 - 1).clamp(min=1))
    elif kind == "grpo":
        centred_GN = centred_GN / ((centred_GN.square().nansum(1, keepdim=True) / count_G1).sqrt() + 1e-4)
    elif kind == "batch":
        centred_GN = centred_GN / (moments(centred_GN[~centred_GN.isnan()])[2] ** 0.5 + 1e-4)
    return centred_GN.nan_to_num(0.0).flatten()


def clipped_policy(logprobs_K, old_K, advantages_K, clip: float):
    """PPO's pessimistic objective as a loss per token: [K] each -> losses [K], ratios [K].

        max(−A ρ, −A clip(ρ, 1−ε, 1+ε)),   ρ = exp(log π − log π_old)      (Schulman et al. 2017, eq. 7)
    """
    ratio_K = (logprobs_K - old_K).exp()
    return torch.maximum(-advantages_K * ratio_K, -advantages_K * ratio_K.clamp(1 - clip, 1 + clip)), ratio_K


def clipped_value(values_K, old_K, returns_K, clip: float):
    """The critic's loss per token, its step clipped like the policy's: [K] each -> losses [K].

        ½ max((V − R)², (V_old + clip(V − V_old, −ε, ε) − R)²)      (Huang et al. 2024, detail "value clipping")
    """
    near_K = old_K + (values_K - old_K).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_K - returns_K) ** 2, (near_K - returns_K) ** 2)


def explained_variance(values_K: torch.Tensor, returns_K: torch.Tensor) -> float:
    """1 − Var(R − V) / Var(R), 0 where returns do not vary: 1 is a perfect critic, 0 one that knows the mean."""
    variance = moments(returns_K)[2]
    return 1 - moments(returns_K - values_K)[2] / variance if variance > EPSILON else 0.0
