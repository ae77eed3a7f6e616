"""A reward model: a score for an answer, such that better answers score higher."""

from __future__ import annotations

import torch.nn.functional as F

from ..pairs import PairObjective, pairs


class Reward(PairObjective):
    """loss_p = −log σ(s_w − s_l − m) + c · (s_w + s_l)²,   mean over pairs p; nats.

    Bradley & Terry (1952) on the score s at an answer's last token (Stiennon et al. 2020, eq. 1); the margin m is by
    how much the row says the better answer is better (Touvron et al. 2023, eq. 2), 0 where it says nothing; c centres
    the scores (Eisenstein et al. 2024, eq. 2). Equals TRL's loss (tests/train/test_peer_losses.py).
    """

    needs = frozenset({"scores"})

    def __init__(self, center: float = 0.0):
        self.center = center

    @classmethod
    def of(cls, settings):
        return cls(settings.center_rewards_coefficient)

    def loss(self, out, pack):
        better, worse = pairs(pack)
        asked = pack.columns["margin"][better] - pack.columns["margin"][worse]
        margin_P = out.scores_S[better] - out.scores_S[worse]
        loss_P = -F.logsigmoid(margin_P - asked.to(margin_P.dtype))
        if self.center:
            loss_P = loss_P + self.center * (out.scores_S[better] + out.scores_S[worse]).square()
        scores = (out.scores_S[better] + out.scores_S[worse]) / 2
        return loss_P.sum(), {"accuracy": (margin_P > 0).sum(), "margin": margin_P.sum(), "score": scores.sum()}
