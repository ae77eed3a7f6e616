"""Direct preference optimization: the policy itself as the reward model, without sampling."""

from __future__ import annotations

import torch.nn.functional as F

from ..pairs import PairObjective, answer_lengths, answer_sums, pairs

# Loss of each pair by `loss_type`, from h, by how many nats the policy prefers the better answer more than the
# reference does (ipo: nats per token; simpo: nats per token, and no reference), and the objective's keys:
#   sigmoid  −(1−ε) log σ(βh) − ε log σ(−βh)              Rafailov et al. 2023, eq. 7; ε > 0: Mitchell 2023, eq. 3
#   robust   (−(1−ε) log σ(βh) + ε log σ(−βh)) / (1−2ε)   Chowdhury et al. 2024, eq. 9: unbiased where a share ε lies
#   ipo      (h − 1/(2β))²                                Azar et al. 2023, eq. 17, τ = β; per token, as they ran it
#   hinge    max(0, 1 − βh)                               Zhao et al. 2023, eq. 2, on DPO's margin
#   simpo    −log σ(βh − γ)                               Meng et al. 2024, eq. 6
LOSSES = {
    "sigmoid": lambda h, o: -(1 - o.smoothing) * F.logsigmoid(o.beta * h) - o.smoothing * F.logsigmoid(-o.beta * h),
    "robust": lambda h, o: (-(1 - o.smoothing) * F.logsigmoid(o.beta * h) + o.smoothing * F.logsigmoid(-o.beta * h)
                            ) / (1 - 2 * o.smoothing),
    "ipo": lambda h, o: (h - 1 / (2 * o.beta)).square(),
    "hinge": lambda h, o: F.relu(1 - o.beta * h),
    "simpo": lambda h, o: -F.logsigmoid(o.beta * h - o.gamma),
}
PER_TOKEN = ("ipo", "simpo")


class DPO(PairObjective):
    """loss = Σ_p (ℓ(h_p) − α log π(y_w|x) / |y_w|) / P,
    h_p = (log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x)).

    The log-prob of an answer is the sum over its tokens, its stop token among them. α = `rpo_alpha` (Pang et al. 2024,
    eq. 1) keeps what the better answer says likely, where the margin alone may let both answers fall. The reference is
    the policy as it started, so the first loss of sigmoid is ln 2. Equals TRL's losses
    (test_preference_losses.py::test_the_first_loss_is_ln_2, test_the_losses_are_those_of_trl).
    """

    def __init__(self, kind: str = "sigmoid", beta: float = 0.1, smoothing: float = 0.0, gamma: float = 1.0,
                 rpo_alpha: float = 0.0):
        self.kind, self.beta, self.smoothing, self.gamma, self.alpha = kind, beta, smoothing, gamma, rpo_alpha
        self.referenced = kind != "simpo"

    @classmethod
    def of(cls, settings):
        return cls(settings.loss_type, settings.beta, settings.label_smoothing, settings.simpo_gamma,
                   settings.rpo_alpha)

    def collect(self, packs, models):
        yield self.held(list(packs), models)

    def held(self, packs, models):
        for pack in packs if self.referenced else []:
            pack.columns["reference"] = models.reference.answers(pack)
        return packs

    def loss(self, out, pack):
        better, worse = pairs(pack)
        sum_S, length_S = answer_sums(out.logprobs_T, pack), answer_lengths(pack)
        reward_S = sum_S
        if self.referenced:
            reward_S = reward_S - pack.columns["reference"]
        score_S = reward_S / length_S if self.kind in PER_TOKEN else reward_S
        h_P = score_S[better] - score_S[worse]
        chosen, rejected = ((self.beta * reward_S[which]).sum() for which in (better, worse))
        loss = LOSSES[self.kind](h_P, self).sum()
        if self.alpha:
            loss = loss - self.alpha * (sum_S / length_S)[better].sum()
        return loss, {
            "accuracy": (h_P > 0).sum(), "margin": (self.beta * h_P).sum(), "reward_chosen": chosen,
            "reward_rejected": rejected}
