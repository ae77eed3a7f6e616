"""Supervised fine-tuning: the negative log-likelihood of the trained tokens."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from ..objective import Objective


class SFT(Objective):
    """loss = Σ_t w_t · l_t / Σ_t w_t over every token of the update, nats per token, l_t = −log p(y_t | y_<t).

    With label smoothing ε (Szegedy et al. 2016, sec. 7): l_t = −(1−ε)·log p(y_t | y_<t) − ε·mean_v log p(v | y_<t);
    the plain loss is then logged as `nll`, and is what held-out rows are judged by. With several `sources` the loss of
    each is logged as `loss/SOURCE`, per token of its own. Pretraining is the same over text rows, where every w is 1.
    """

    rows = frozenset({"conversation", "text"})

    def __init__(self, smoothing: float = 0.0, sources: Many[str] = ()):
        self.smoothing, self.sources = smoothing, list(sources)
        self.needs = frozenset({"logprobs", "mean_logprob"} if smoothing else {"logprobs"})

    @classmethod
    def of(cls, settings):
        return cls(settings.label_smoothing_factor, settings.data)

    def size(self, pack):
        return pack.weights_T.sum()

    def loss(self, out, pack):
        logprobs_T, logged = out.logprobs_T, {}
        if self.smoothing:
            logged["nll"] = -(logprobs_T.detach() * pack.weights_T).sum()
            logprobs_T = torch.lerp(logprobs_T, out.mean_logprob_T, self.smoothing)
        losses_T = -logprobs_T * pack.weights_T
        if len(self.sources) > 1:
            logged |= self._by_source(losses_T.detach(), pack)
        return losses_T.sum(), logged

    def judge(self):
        return SFT()

    def _by_source(self, losses_T, pack):
        """(loss, tokens) of each source, by name; a source that this pack lacks has (0, 0)."""
        sums = {name: (0.0, 0.0) for name in self.sources}
        device = losses_T.device
        sizes_S = torch.tensor(pack.lengths, device=device)
        source_T = torch.tensor(pack.sources, device=device).repeat_interleave(sizes_S, output_size=len(losses_T))
        for number, name in enumerate(self.sources):  # a file named twice is one source
            mine_T = (source_T == number).double()
            loss, tokens = sums[name]
            sums[name] = loss + (losses_T * mine_T).sum(), tokens + (pack.weights_T * mine_T).sum()
        return {f"loss/{name}": pair for name, pair in sums.items()}
