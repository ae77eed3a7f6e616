"""Proximal policy optimization of answers, with its four models."""

from __future__ import annotations

import torch

from ..advantages import clipped_policy, clipped_value, explained_variance, flat, gae, kl_k1, kl_k3, moments, whiten
from ..reinforce import Reinforce
from ..rollout import answer_lengths, spread

VALUE_COEF = 0.1  # of the critic's loss beside the policy's (Huang et al. 2024, table of hyperparameters)


class PPO(Reinforce):
    """loss = Σ_t max(−A_t ρ_t, −A_t clip(ρ_t)) + 0.1 · value loss − entropy_coef · H_t, over the tokens of a minibatch.

    The reward of a token is −kl_coef · k1, and the score is added at the last one; advantages are GAE's, whitened
    over the collection (Schulman et al. 2017; Ziegler et al. 2019; Huang et al. 2024).
    """

    @property
    def normalizes(self):
        return self.settings.normalize_reward

    @property
    def needs(self):
        """The critic learns alone during its warm-up."""
        if self.state["collection"] < self.settings.critic_warmup:
            return frozenset({"values"})
        return frozenset({"logprobs", "values", *(["entropy"] if self.settings.entropy_coef else [])})

    @torch.no_grad()
    def _columns(self, laid, models):
        packs = [pack for batch in laid for pack in batch if not pack.idle]
        found = []
        for pack in packs:
            measured = self._measure(pack, models)
            here = pack.to(models.critic.device)
            measured["values"] = models.critic(here, {"values"}).values_T[here.weights_T != 0]
            measured["advantages"] = self._advantages(measured, pack)
            measured["returns"] = measured["advantages"] + measured["values"]
            found.append(measured)
        values, returns, advantages = (flat([f[n] for f in found]) for n in ("values", "returns", "advantages"))
        self.facts["explained_variance"] = explained_variance(values, returns)
        self.facts["value"] = moments(values)[1]
        white = whiten(advantages.double()).to(advantages.dtype).split([len(f["values"]) for f in found])
        for pack, measured, advantages_K in zip(packs, found, white, strict=True):
            for name, column_K in (measured | {"advantages": advantages_K}).items():
                pack.columns[name] = spread(column_K.cpu(), pack)

    def _advantages(self, measured, pack):
        """GAE of a pack's answers, [K]."""
        lengths = answer_lengths(pack)
        rewards_K = -self.state["kl_coef"] * kl_k1(measured["old"], measured["reference"])
        ends = torch.tensor(lengths, device=rewards_K.device).cumsum(0) - 1
        rewards_K[ends] += pack.columns["score"].to(rewards_K)
        return gae(rewards_K, measured["values"], lengths, lam=self.settings.gae_lambda)

    def loss(self, out, pack):
        clip, loss, told = self.settings.clip_range, 0.0, {}
        where, columns = pack.weights_T != 0, pack.columns
        if out.logprobs_T is not None:
            new, old = out.logprobs_T[where], columns["old"][where]
            losses, ratio = clipped_policy(new, old, columns["advantages"][where], clip)
            loss = loss + losses.sum()
            told |= {"policy_loss": losses.sum(), "ratio": ratio.sum(), "approx_kl": kl_k3(old, new).sum(),
                     "clip_fraction": ((ratio - 1).abs() > clip).sum()}
            if out.entropy_T is not None:
                loss = loss - self.settings.entropy_coef * out.entropy_T[where].sum()
        if out.values_T is not None:
            losses = clipped_value(out.values_T[where], columns["values"][where], columns["returns"][where], clip)
            loss = loss + VALUE_COEF * losses.sum()
            told["value_loss"] = losses.sum()
        return loss, told
