"""Group-relative policy optimization: several answers to each prompt are judged beside each other; no critic."""

from __future__ import annotations

import math

import torch

from ..advantages import clipped_policy, group_advantages, kl_k3, moments
from ..reinforce import Reinforce
from ..rollout import answer_lengths, spread


class GRPO(Reinforce):
    """loss = Σ_t w_t (max(−A ρ_t, −A clip(ρ_t)) + kl_coef · k3_t) / units, A one number per answer.

    w_t and the units follow `length_norm`: `sequence` (1 / length of the answer, per answer: Shao et al. 2024, eq. 3),
    `token` (1, per token of the minibatch: Yu et al. 2025), `constant` (1, per answer · max_new_tokens: Liu et al.
    2025). At ratio 1 the gradient is REINFORCE's (test_ppo.py::test_at_ratio_one_grpo_is_reinforce).
    """

    def __init__(self, settings):
        super().__init__(settings)
        self.group = settings.num_generations

    @property
    def needs(self):
        return frozenset({"logprobs", *(["entropy"] if self.settings.entropy_coef else [])})

    def size(self, pack):
        if self.settings.length_norm == "token":
            return pack.weights_T.sum()
        answers = torch.tensor(float(len(pack.lengths)))
        return answers * (self.settings.max_new_tokens if self.settings.length_norm == "constant" else 1)

    def _judge(self, answers, models):
        scores = super()._judge(answers, models)
        learnt = torch.tensor([score if math.isnan(score) else a.sequence.facts["score"] for a, score in
                               zip(answers, scores, strict=True)], dtype=torch.float64)
        made = group_advantages(learnt, self.group, self.settings.advantages)
        for answer, advantage in zip(answers, made.tolist(), strict=True):
            answer.sequence.facts = {"advantage": advantage}
        self.facts["idle_groups"] = moments((made.view(len(made) // self.group, self.group) == 0).all(1))[1]
        return scores

    def _columns(self, laid, models):
        for pack in (pack for batch in laid for pack in batch if not pack.idle):
            measured = self._measure(pack, models)
            lengths = torch.tensor(answer_lengths(pack))
            measured["advantages"] = pack.columns["advantage"].repeat_interleave(lengths).to(measured["old"])
            shares = {"sequence": 1 / lengths, "token": lengths / lengths,
                      "constant": self.settings.max_new_tokens / lengths}
            tell = shares[self.settings.length_norm]  # what makes a mean per token of what is logged
            share = tell if self.settings.length_norm == "sequence" else torch.ones(len(lengths))
            for name, of_answer in (("share", share), ("told", tell)):
                measured[name] = of_answer.repeat_interleave(lengths).to(measured["old"])
            for name, column_K in measured.items():
                pack.columns[name] = spread(column_K.cpu(), pack)

    def loss(self, out, pack):
        where, clip = pack.weights_T != 0, self.settings.clip_range
        names = ("old", "advantages", "reference", "share", "told")
        old, advantages, reference, share, tell = (pack.columns[n][where] for n in names)
        new = out.logprobs_T[where]
        losses, ratio = clipped_policy(new, old, advantages, clip)
        if self.settings.kl_coef:
            losses = losses + self.state["kl_coef"] * kl_k3(new, reference)
        if out.entropy_T is not None:
            losses = losses - self.settings.entropy_coef * out.entropy_T[where]
        return (share * losses).sum(), {
            "ratio": (tell * ratio).sum(), "approx_kl": (tell * kl_k3(old, new)).sum(),
            "clip_fraction": (tell * ((ratio - 1).abs() > clip)).sum()}
