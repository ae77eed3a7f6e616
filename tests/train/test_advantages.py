"""The arithmetic of PPO and GRPO against loops in float64 written from the papers' formulas."""

import math

import pytest
import torch

from posttrain.train.advantages import (
    by_answer,
    clipped_policy,
    clipped_value,
    end_to_end,
    explained_variance,
    gae,
    group_advantages,
    kl_k1,
    kl_k3,
    whiten,
)

LENGTHS = [3, 1, 5, 2]


def columns(count, n=11, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(count)]


def test_padding_and_back():
    (x,) = columns(1)
    padded = by_answer(x, LENGTHS)
    assert padded.shape == (4, 5) and padded[1].tolist() == [x[3].item(), 0, 0, 0, 0]
    assert torch.equal(end_to_end(padded, LENGTHS), x)


@pytest.mark.parametrize(("lam", "gamma"), [(0.95, 1.0), (1.0, 1.0), (0.0, 0.9), (0.7, 0.99)])
def test_gae_by_its_definition(lam, gamma):
    """A_t = Σ_l (γλ)^l δ_{t+l}, summed directly."""
    rewards, values = columns(2)
    found, at = gae(rewards, values, LENGTHS, lam=lam, gamma=gamma).tolist(), 0
    for n in LENGTHS:
        r, v = rewards[at:at + n].tolist(), [*values[at:at + n].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(n)]
        for t in range(n):
            expected = sum((gamma * lam) ** (k - t) * delta[k] for k in range(t, n))
            assert math.isclose(found[at + t], expected, rel_tol=1e-12, abs_tol=1e-12)
        at += n


def test_gae_with_lambda_one_is_return_minus_value():
    rewards, values = columns(2)
    found = gae(rewards, values, LENGTHS, lam=1.0)
    to_go = by_answer(rewards, LENGTHS).flip(1).cumsum(1).flip(1)
    assert torch.allclose(found, end_to_end(to_go, LENGTHS) - values, atol=1e-12)


def test_an_answer_does_not_see_its_neighbour():
    rewards, values = columns(2)
    whole = gae(rewards, values, LENGTHS, lam=0.9)
    alone = torch.cat([gae(r, v, [n], lam=0.9) for r, v, n in zip(
        rewards.split(LENGTHS), values.split(LENGTHS), LENGTHS, strict=True)])
    assert torch.allclose(whole, alone, atol=1e-15)


def test_kl_estimators():
    policy, reference = (-x.abs() for x in columns(2))
    for p, q, k1, k3 in zip(policy.tolist(), reference.tolist(), kl_k1(policy, reference).tolist(),
                            kl_k3(policy, reference).tolist(), strict=True):
        assert math.isclose(k1, p - q, abs_tol=1e-15)
        assert math.isclose(k3, math.exp(q - p) - 1 - (q - p), rel_tol=1e-9, abs_tol=1e-15) and k3 >= 0


def test_both_estimators_mean_the_divergence():
    """Σ_y π(y) k(y) = KL(π ‖ π_ref), exactly, for k1 and k3 (both are unbiased)."""
    policy, reference = (x.log_softmax(0) for x in columns(2, n=40))
    exact = (policy.exp() * (policy - reference)).sum()
    for estimator in (kl_k1, kl_k3):
        assert math.isclose((policy.exp() * estimator(policy, reference)).sum(), exact, rel_tol=1e-12)


def test_whitening_is_over_everything():
    (x,) = columns(1)
    made = whiten(3 * x + 5)
    assert abs(made.mean()) < 1e-12 and abs(made.var(unbiased=False) - 1) < 1e-6
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    assert torch.allclose(whiten((3 * x + 5)[shuffled]), made[shuffled], atol=1e-12)
    assert not whiten(torch.full((4,), 2.0)).any()


def test_the_clipped_policy_loss():
    new, old, advantages = columns(3)
    losses, ratios = clipped_policy(new, old, advantages, 0.2)
    for n, o, a, loss, ratio in zip(new.tolist(), old.tolist(), advantages.tolist(), losses.tolist(), ratios.tolist(),
                                    strict=True):
        r = math.exp(n - o)
        assert math.isclose(ratio, r, rel_tol=1e-12)
        assert math.isclose(loss, -min(a * r, a * min(max(r, 0.8), 1.2)), rel_tol=1e-12)


def test_at_ratio_one_the_gradient_is_that_of_reinforce():
    old, advantages = columns(2)
    new = old.clone().requires_grad_()
    losses, _ = clipped_policy(new, old, advantages, 0.2)
    (grad,) = torch.autograd.grad(losses.sum(), new)
    assert torch.allclose(losses, -advantages) and torch.allclose(grad, -advantages, atol=1e-15)


def test_the_clipped_value_loss():
    new, old, returns = columns(3)
    for n, o, r, loss in zip(new.tolist(), old.tolist(), returns.tolist(),
                             clipped_value(new, old, returns, 0.2).tolist(), strict=True):
        near = o + min(max(n - o, -0.2), 0.2)
        assert math.isclose(loss, 0.5 * max((n - r) ** 2, (near - r) ** 2), rel_tol=1e-12)


def test_group_advantages():
    scores = torch.tensor([1.0, 0, 0, 1, 2, 2, 2, 2, 5, 1, 1, 1], dtype=torch.float64)
    groups = [scores[i:i + 4].tolist() for i in (0, 4, 8)]
    spread = math.sqrt(sum((r - sum(g) / 4) ** 2 for g in groups for r in g) / 12)  # their mean is 0
    for kind in ("grpo", "dr_grpo", "batch", "rloo"):
        found = group_advantages(scores, 4, kind).tolist()
        for g, rewards in enumerate(groups):
            mean = sum(rewards) / 4
            std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 4)
            for i, r in enumerate(rewards):
                expected = {"grpo": (r - mean) / (std + 1e-4), "dr_grpo": r - mean,
                            "batch": (r - mean) / (spread + 1e-4), "rloo": r - (sum(rewards) - r) / 3}[kind]
                assert math.isclose(found[4 * g + i], expected, rel_tol=1e-12, abs_tol=1e-12), kind
        assert found[4:8] == [0, 0, 0, 0], "a group of equals teaches nothing"
        equals = torch.tensor([0.1] * 3 + [0.7] * 3 + [1 / 3] * 3, dtype=torch.float64)  # 3 × 0.1 / 3 is not 0.1
        assert not group_advantages(equals, 3, kind).any()


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "batch", "rloo"])
def test_an_answer_without_a_score_is_no_part_of_its_group(kind):
    """The others have what they would have without it; a group in which one alone has a score teaches nothing."""
    none = float("nan")
    asked = torch.tensor([1.0, none, 4.0, 2.0, none, none, 3.0, none], dtype=torch.float64)
    made = group_advantages(asked, 4, kind)
    assert (made[[1, 4, 5, 6, 7]] == 0).all()
    if kind == "batch":
        alone = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
        alone = alone - alone.mean()
        alone = alone / ((alone.square().sum() / 4).sqrt() + 1e-4)  # and the 0 of the fourth that has a score
    else:
        alone = group_advantages(torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64), 3, kind)
    assert torch.allclose(made[[0, 2, 3]], alone, atol=1e-12)


def test_explained_variance():
    (returns,) = columns(1)
    assert explained_variance(returns, returns) == 1.0
    assert abs(explained_variance(torch.full_like(returns, returns.mean()), returns)) < 1e-12
    assert explained_variance(returns, torch.ones_like(returns)) == 0.0
