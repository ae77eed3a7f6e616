"""From a pack to what objectives need: log-probs of the targets, never [T, V] logits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from ..core.pack import Pack
from .attention import Layout, set_layout
from .fused import row_pieces
from .noise import EmbeddingNoise
from .shard import inside_shards, is_sharded

# Logits of one chunk may take this many bytes; more targets than fit are run in several recomputed chunks.
CHUNK_BYTES = 256 << 20
# On CPU in bf16 streams and target lists are filled up to a multiple of this: oneDNN compiles a kernel per size.
ALIGN = 128
STATS = ("logprobs", "entropy", "mean_logprob")


@dataclass(slots=True)
class Outputs:
    """What a forward filled, aligned with the pack's tokens (positions of weight 0 hold 0) or sequences.

    logprobs_T [T] nats, <= 0; entropy_T [T] nats; mean_logprob_T [T], the mean over the vocabulary (label smoothing);
    values_T [T], the value head's at the token that predicts; scores_S [S], the score head's at a sequence's last.
    float32, or float64 where the model computes in it.
    """

    logprobs_T: torch.Tensor | None = None
    entropy_T: torch.Tensor | None = None
    mean_logprob_T: torch.Tensor | None = None
    values_T: torch.Tensor | None = None
    scores_S: torch.Tensor | None = None


class Head:
    """The model's own output head: calls its module, then applies its scale and soft cap.

    `[K, D] -> [K, V]` logits. Scale and cap are read from the config under the names that transformers' models use;
    the load probe compares the result with the model's own logits.
    """

    def __init__(self, model):
        config = model.config.get_text_config()
        self.module = model.get_output_embeddings()
        self.scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        self.cap = getattr(config, "final_logit_softcapping", None)

    def __call__(self, hidden_KD: torch.Tensor) -> torch.Tensor:
        logits = self.module(hidden_KD)
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.cap:
            logits = self.cap * torch.tanh(logits / self.cap)
        return logits


class _TargetLogprob(torch.autograd.Function):
    """logprob_k = z_k[y_k] − logsumexp(z_k), z = logits / temperature; keeps the logits in their own type, no more.

    d logprob_k / d logits_k = (onehot(y_k) − softmax(z_k)) / temperature; float32 inside (float64 for float64), a few
    rows at a time on CPU.
    """

    @staticmethod
    def forward(ctx, logits_KV, targets_K, temperature):
        wider = torch.promote_types(logits_KV.dtype, torch.float32)
        norm_K = torch.empty(len(logits_KV), dtype=wider, device=logits_KV.device)
        for at in row_pieces(logits_KV):
            wide = _wide(logits_KV[at], temperature)
            top = wide.amax(-1, keepdim=True)
            norm_K[at] = wide.sub_(top).exp_().sum(-1).log_().add_(top[:, 0])
        ctx.save_for_backward(logits_KV, targets_K, norm_K)
        ctx.temperature = temperature
        return _wide(logits_KV.gather(1, targets_K[:, None])[:, 0], temperature) - norm_K

    @staticmethod
    def backward(ctx, grad_K):
        logits_KV, targets_K, norm_K = ctx.saved_tensors
        grad_K, out_KV = grad_K / ctx.temperature, torch.empty_like(logits_KV)
        for at in row_pieces(logits_KV):
            target, grad = targets_K[at, None], grad_K[at, None]
            wide = _wide(logits_KV[at], ctx.temperature).sub_(norm_K[at, None]).exp_().mul_(-grad)
            out_KV[at] = wide.scatter_add_(1, target, grad)
        return out_KV, None, None


def _wide(logits, temperature):
    """A copy in float32 or wider, divided by the temperature."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    return wide if temperature == 1.0 else wide.div_(temperature)


def target_stats(logits_KV, targets_K, needs, temperature=1.0):
    """Statistics of each row of logits at its target.

    logits_KV [K, V], targets_K [K] -> tuple of [K] in the order logprobs, entropy, mean_logprob, those in `needs`.
        logprob_k = z_k[y_k] - logsumexp(z_k),   entropy_k = -Σ_v p_v log p_v,   mean_k = mean_v log p_v
    Computed in float32 (float64 logits stay float64). What else is asked for never changes a bit of the log-probs, so
    that a policy's ratio to itself is 1 (test_forward.py::test_other_statistics_leave_the_logprobs_as_they_are).
    """
    found = [_TargetLogprob.apply(logits_KV, targets_K, temperature)] if "logprobs" in needs else []
    if needs & {"entropy", "mean_logprob"}:
        log_p = F.log_softmax(_wide(logits_KV, temperature), dim=-1)
        if "entropy" in needs:
            found.append(-(log_p.exp() * log_p).sum(-1))
        if "mean_logprob" in needs:
            found.append(log_p.mean(-1))
    return tuple(found)


def token_logprobs(hidden_KD, head, targets_K, needs=frozenset({"logprobs"}), temperature=1.0, chunk=None):
    """Target statistics in chunks of rows, each recomputed in the backward instead of kept.

    hidden_KD [K, D] compute dtype, targets_K [K] int64 -> tuple of [K] (see `target_stats`), nats.
    `chunk` changes memory, never the result (test_forward.py::test_chunk_changes_nothing).
    """
    count = hidden_KD.shape[0]
    if chunk is None:
        width = getattr(head.module, "out_features", None) or head.module.weight.shape[0]
        each = hidden_KD.element_size() if set(needs) == {"logprobs"} else 8  # the others keep float32 copies
        chunk = max(16, CHUNK_BYTES // (each * width))

    def piece(hidden, targets):
        return target_stats(head(hidden), targets, needs, temperature)

    if count <= chunk:
        return piece(hidden_KD, targets_K)
    size = aligned(-(-count // -(-count // chunk)), 16)  # equal pieces
    parts = [checkpoint(piece, hidden_KD[i:i + size], targets_K[i:i + size], use_reentrant=False)
             for i in range(0, count, size)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


class Forward:
    """Runs packs through one causal model: `forward(pack, needs) -> Outputs`.

    `flat` runs a whole pack at once with packed attention; otherwise (models that failed the load probe) one sequence
    at a time through the model's own forward and head. Both give the same numbers to rounding. `heads` are scalar ones
    (see `heads.HEAD_OF`), for needs that the model's own head does not fill. `noise`, where there is one, falls on
    forwards that train: in training mode, with a gradient.
    """

    def __init__(self, model, *, flat: bool = True, heads=None):
        self.model, self.flat, self.heads = model, flat, heads or {}
        self.noise: EmbeddingNoise | None = None
        self.causal = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.decoder = self.causal.get_decoder()
        self.head = Head(self.causal)
        self._inside = inside_shards(self.causal, self._run) if is_sharded(self.causal) else self._run

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return getattr(self.causal, "computes_in", self.causal.dtype)

    @property
    def device(self) -> torch.device:
        return self.causal.device

    @property
    def align(self) -> int:
        return ALIGN if self.device.type == "cpu" and self.dtype == torch.bfloat16 else 1

    def hidden(self, pack: Pack) -> torch.Tensor:
        """Last hidden states, [T' >= T, D], the first T the pack's; its layout stays set for recomputation."""
        size, align = pack.ids_T.shape[0], self.align
        fill = aligned(size, align) - size
        set_layout(Layout(pack.bounds, pack.ids_T.device, few_shapes=align > 1, padding=fill))
        self._noise(pack.numbers, pack.lengths, fill)
        return self.decoder(input_ids=F.pad(pack.ids_T, (0, fill))[None],
                            position_ids=F.pad(pack.positions_T, (0, fill))[None], use_cache=False).last_hidden_state[0]

    def __call__(self, pack: Pack, needs: Iterable[str] = ("logprobs",), temperature: float = 1.0) -> Outputs:
        return Outputs(**self._inside(pack, frozenset(needs), temperature))

    def _run(self, pack: Pack, needs: frozenset[str], temperature: float) -> dict[str, torch.Tensor]:
        """The columns of Outputs by name."""
        stats, scalars = needs & set(STATS), needs - set(STATS)
        where = pack.weights_T.nonzero()[:, 0]
        hidden_TD, columns = None, {}
        if self.flat:
            hidden_TD = self.hidden(pack)
            if stats:
                columns = self._stats(hidden_TD, where, pack.targets_T[where], stats, temperature)
        else:
            if stats:
                columns = self._one_by_one(pack, stats, temperature)
            if scalars:
                hidden_TD = torch.cat([self._hidden_of(pack, s) for s in range(len(pack.lengths))])
        if "values" in scalars:
            columns["values"] = self.heads["value"](hidden_TD.index_select(0, where))
        size = pack.ids_T.shape[0]
        out = {f"{name}_T": torch.zeros(size, dtype=c.dtype, device=c.device).index_put((where,), c)
               for name, c in columns.items()}
        if "scores" in scalars:
            ends = torch.tensor(pack.bounds[1:], device=hidden_TD.device) - 1
            out["scores_S"] = self.heads["score"](hidden_TD.index_select(0, ends))
        return out

    def _stats(self, hidden_TD, where, targets_K, needs, temperature) -> dict[str, torch.Tensor]:
        fill = aligned(len(where), self.align) - len(where)  # repeats of a position, whose results are dropped
        rows, targets = (torch.cat([x, x[:1].expand(fill)]) for x in (where, targets_K))
        columns = token_logprobs(hidden_TD.index_select(0, rows), self.head, targets, needs, temperature)
        return {n: c[:len(where)] for n, c in zip([n for n in STATS if n in needs], columns, strict=True)}

    def _noise(self, numbers: list[int], lengths: list[int], padding: int = 0) -> None:
        if self.noise is not None and self.model.training and torch.is_grad_enabled():
            self.noise.expect(numbers, lengths, padding)

    def _hidden_of(self, pack: Pack, s: int) -> torch.Tensor:
        self._noise(pack.numbers[s:s + 1], pack.lengths[s:s + 1])
        ids = pack.ids_T[None, pack.bounds[s]:pack.bounds[s + 1]]
        return self.decoder(input_ids=ids, use_cache=False).last_hidden_state[0]

    def _one_by_one(self, pack: Pack, needs, temperature) -> dict[str, torch.Tensor]:
        parts = []
        for s, (a, b) in enumerate(zip(pack.bounds, pack.bounds[1:], strict=False)):
            where = pack.weights_T[a:b].nonzero()[:, 0]
            if len(where) or torch.is_grad_enabled():
                self._noise(pack.numbers[s:s + 1], [b - a])
                logits = self.causal.forward(input_ids=pack.ids_T[None, a:b], use_cache=False).logits[0]
                parts.append(target_stats(logits[where], pack.targets_T[a:b][where], needs, temperature))
        names = [n for n in STATS if n in needs]
        if not parts:  # nothing trained, and no gradient wanted
            return {name: torch.zeros(0, device=self.device) for name in names}
        return {name: torch.cat(column) for name, column in zip(names, zip(*parts, strict=True), strict=True)}


def aligned(size: int, to: int) -> int:
    """The next multiple of `to`."""
    return -(-size // to) * to
