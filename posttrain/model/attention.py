"""Attention over a flat pack: no token ever sees another sequence, and no [T, T] mask is ever made.

Registered with transformers under the name `posttrain` through its public attention interfaces, so any model that
takes its attention from there runs packed without a patch. CUDA: `torch.nn.attention.varlen` in half precision; else,
and on CPU, sequences of like length are gathered into causal batches (padding on the right is hidden by causality, so
it needs no mask and adds nothing to a gradient).
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.nn.functional as F
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "posttrain"
# On CPU in bf16 three plain matrix products beat the fused kernel up to this length (docs/log.md).
SHORT = 256
# Batches have one of these shapes on that path: oneDNN compiles and keeps a kernel per shape, and compiling for every
# new mixture of lengths costs a fifth of the time and hundreds of megabytes (docs/log.md).
LENGTHS = (16, 32, 48, 64, 80, 96, 128, 160, 192, 224, SHORT)
LONG = 64  # and longer ones are filled up to a multiple of this, for the same reason
COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# A longer sequence joins a batch whose longest member is at most this many times longer.
STRETCH = 1.34
# Keywords that models pass to attention functions and that do not change what a packed causal attention computes.
HARMLESS = {"position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states", "is_causal",
            "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "return_dict", "position_embeddings",
            "output_router_logits", "num_items_in_batch", "cache"}


def costliest_length(max_length: int, few_shapes: bool) -> int:
    """Length of the sequences that attention keeps most of, per token: the longest, but for plain products on CPU."""
    return min(max_length, SHORT) if few_shapes else max_length


class UnknownAttention(ValueError):
    """A model asked its attention for something this module does not know; the load probe then falls back."""


@dataclass
class Layout:
    """Where the sequences of the current pack lie, and the causal batches that they are run as.

    `batches` lists the shapes [B, L], laid out when first asked for (the varlen kernel needs none). Laid end to end,
    the batches take row `spread[r]` of the stream at row r (padding repeats a sequence's last token); token t of the
    stream stands at row `back[t]`. Both are None where the stream is one batch as it is.
    """

    bounds: list[int]
    device: torch.device
    few_shapes: bool = False  # on CPU in bf16
    padding: int = 0  # tokens after the last sequence that attend to nothing
    masks: dict = field(default_factory=dict)
    cu_seqlens: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            self.cu_seqlens = torch.tensor(self.bounds, dtype=torch.int32, device=self.device)

    def to(self, device: str) -> None:
        """Lay it out here, and hold it there: a plan's device has no numbers to lay out."""
        shapes, spread, back = self._laid
        self.device = torch.device(device)
        self._laid = (shapes, *(None if rows is None else rows.to(device) for rows in (spread, back)))

    @property
    def batches(self) -> list[tuple[int, int]]:
        return self._laid[0]

    @property
    def spread(self) -> torch.Tensor | None:
        return self._laid[1]

    @property
    def back(self) -> torch.Tensor | None:
        return self._laid[2]

    @cached_property
    def _laid(self) -> tuple[list[tuple[int, int]], torch.Tensor | None, torch.Tensor | None]:
        shapes, spreads, reals = zip(*(self._rows(group, length) for group, length in self._groups()), strict=True)
        spread, real = torch.cat(spreads), torch.cat(reals)
        if len(shapes) == 1 and bool(real.all()):
            return list(shapes), None, None
        back = torch.empty(self.bounds[-1], dtype=torch.long)
        back[spread[real]] = real.nonzero()[:, 0]
        return list(shapes), spread.to(self.device), back.to(self.device)

    def _groups(self) -> list[tuple[list[int], int]]:
        """Sequences that share a batch, longest first, each group with its batch's length."""
        lengths = [b - a for a, b in zip(self.bounds, self.bounds[1:], strict=False)]
        groups: list[tuple[list[int], int]] = []
        for s in sorted(range(len(lengths)), key=lambda s: -lengths[s]):
            size = lengths[s]
            if self.few_shapes:
                size = LENGTHS[bisect.bisect_left(LENGTHS, size)] if size <= SHORT else -(-size // LONG) * LONG
                fits = groups and groups[-1][1] == size
            else:
                fits = groups and groups[-1][1] <= STRETCH * size
            if fits:
                groups[-1][0].append(s)
            else:
                groups.append(([s], size))
        return groups

    def _rows(self, group: list[int], length: int) -> tuple[tuple[int, int], torch.Tensor, torch.Tensor]:
        """The group's batch: its shape, the stream row of each of its rows [B*L], and which are no padding."""
        starts = torch.tensor([self.bounds[s] for s in group])
        sizes = torch.tensor([self.bounds[s + 1] - self.bounds[s] for s in group])
        short = self.few_shapes and length <= SHORT and len(group) <= COUNTS[-1]
        batch = COUNTS[bisect.bisect_left(COUNTS, len(group))] if short else len(group)
        more = batch - len(group)  # whole sequences of padding
        starts = torch.cat([starts, starts[:1].expand(more)])
        sizes = torch.cat([sizes, torch.zeros(more, dtype=sizes.dtype)])
        inside = torch.arange(length)
        rows = starts[:, None] + torch.minimum(inside[None], (sizes[:, None] - 1).clamp(min=0))
        return (batch, length), rows.flatten(), (inside[None] < sizes[:, None]).flatten()

    def window_mask(self, length: int, window: int) -> torch.Tensor:
        """[L, L] bool, true where query i may see key j: 0 <= i - j < window."""
        if (length, window) not in self.masks:
            i = torch.arange(length, device=self.device)
            distance = i[:, None] - i[None, :]
            self.masks[length, window] = (distance >= 0) & (distance < window)
        return self.masks[length, window]


_current: Layout | None = None


def set_layout(layout: Layout | None) -> None:
    """Name the pack that the next forward (and its recomputation in the backward) runs on."""
    global _current
    _current = layout


class _Spread(torch.autograd.Function):
    """The stream as padded batches end to end, [T, …] -> [R, …]; padding gives no gradient."""

    @staticmethod
    def forward(ctx, x, layout):
        ctx.layout = layout
        return x.index_select(0, layout.spread)

    @staticmethod
    def backward(ctx, grad):
        return _with_padding(grad.index_select(0, ctx.layout.back), ctx.layout), None


class _Back(torch.autograd.Function):
    """The batches' real rows in stream order, [R, …] -> [T, …], the stream's own padding zero."""

    @staticmethod
    def forward(ctx, x, layout):
        ctx.layout, ctx.rows = layout, x.shape[0]
        return _with_padding(x.index_select(0, layout.back), layout)

    @staticmethod
    def backward(ctx, grad):
        out = grad.new_zeros((ctx.rows, *grad.shape[1:]))
        return out.index_copy_(0, ctx.layout.back, grad[: ctx.layout.bounds[-1]]), None


def _with_padding(x, layout):
    return F.pad(x, (0, 0) * (x.dim() - 1) + (0, layout.padding)) if layout.padding else x


class _ShortCausal(torch.autograd.Function):
    """Causal attention as three batched products, for short sequences in bf16 on CPU.

    q [N, G*L, D], k, v [N, L, D], mask [G*L, L] -> [N, G*L, D]; N runs over batch × key heads, G query heads share one.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask, scale):
        weights = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=scale).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        ctx.scale = scale
        return torch.bmm(weights, v)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, weights = ctx.saved_tensors
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        inner = torch.bmm(grad, v.transpose(1, 2))
        inner = torch._softmax_backward_data(inner, weights, -1, weights.dtype)
        grad_q = torch.bmm(inner, k).mul_(ctx.scale)
        return grad_q, torch.bmm(inner.transpose(1, 2), q).mul_(ctx.scale), grad_v, None, None


def attend(module, query, key, value, attention_mask=None, *, scaling=None, dropout=0.0, sliding_window=None,
           softcap=None, s_aux=None, position_bias=None, **rest):
    """Attention of the current pack, for transformers' attention interface.

    query [1, H, T, D], key, value [1, H_kv, T, D] -> ([1, T, H, D], None). Sliding windows, soft caps and sinks are
    honoured; any other keyword raises UnknownAttention (test_attention.py::test_unknown_keyword_raises).
    """
    unknown = [k for k, v in rest.items() if v is not None and v is not False and k not in HARMLESS]
    if unknown or position_bias is not None or attention_mask is not None:
        raise UnknownAttention(f"unknown attention keyword: {', '.join(unknown) or 'a mask or position bias'}")
    layout = _current
    if layout is None or layout.bounds[-1] + layout.padding != query.shape[2]:
        raise UnknownAttention("the pack's layout is not set")
    scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    plain = softcap is None and s_aux is None and dropout == 0.0
    half = query.dtype in (torch.bfloat16, torch.float16)
    if plain and query.is_cuda and half and not layout.padding and value.shape[-1] == key.shape[-1]:
        return _varlen(q_THD, k_THD, v_THD, layout, scale, sliding_window)[None], None
    special = (softcap, s_aux, dropout)
    if layout.spread is not None:
        q_THD, k_THD, v_THD = (_Spread.apply(x, layout) for x in (q_THD, k_THD, v_THD))
    elif layout.padding:
        q_THD, k_THD, v_THD = (x[: layout.bounds[-1]] for x in (q_THD, k_THD, v_THD))
    sizes = [batch * length for batch, length in layout.batches]
    outputs = []
    for shape, *qkv in zip(layout.batches, *(x.split(sizes) for x in (q_THD, k_THD, v_THD)), strict=True):
        window = sliding_window if sliding_window and sliding_window < shape[1] else None
        out = _causal(*(x.unflatten(0, shape) for x in qkv), scale, window, special, layout)  # [B, L, H, D]
        outputs.append(out.reshape(-1, *out.shape[2:]))
    stream = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    stream = _with_padding(stream, layout) if layout.back is None else _Back.apply(stream, layout)
    return stream[None], None


def _causal(q, k, v, scale, window, special, layout):
    """One causal batch: q [B, L, H, D], k, v [B, L, H_kv, D] -> [B, L, H, D]."""
    softcap, sinks, dropout = special
    length, groups = q.shape[1], q.shape[2] // k.shape[2]
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if softcap is not None or sinks is not None:
        return _explicit(q, k, v, scale, window or length, softcap, sinks, dropout, layout).transpose(1, 2)
    if layout.few_shapes and length <= SHORT and dropout == 0.0:
        batch, kv_heads, _, width = k.shape
        mask = _additive(layout, length, window or length, groups, q.dtype)
        out = _ShortCausal.apply(q.reshape(batch * kv_heads, groups * length, width),
                                 k.reshape(batch * kv_heads, length, width),
                                 v.reshape(batch * kv_heads, length, v.shape[-1]), mask, scale)
        return out.view(batch, kv_heads * groups, length, v.shape[-1]).transpose(1, 2)
    mask = None if window is None else layout.window_mask(length, window)
    if q.is_meta:  # torch would not choose the fused kernel for a tensor without bytes
        out, _ = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, dropout, mask is None, scale=scale)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=mask is None,
                                             scale=scale, enable_gqa=groups > 1)
    return out.transpose(1, 2)


def _additive(layout, length, window, groups, dtype):
    """[G*L, L]: 0 where a query may look, minus infinity elsewhere."""
    known = layout.masks.get((length, window, groups))
    if known is None:
        allowed = layout.window_mask(length, window)
        known = torch.zeros(length, length, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, float("-inf")).repeat(groups, 1)
        layout.masks[length, window, groups] = known
    return known


def _explicit(q, k, v, scale, window, softcap, sinks, dropout, layout):
    """Scores written out, for what the fused kernels lack: soft caps (Gemma 2) and sinks (gpt-oss).

    q [B, H, L, D] -> [B, H, L, D]; scores and softmax in at least float32.
    """
    groups, length = q.shape[1] // k.shape[1], q.shape[2]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = (q @ k.transpose(-1, -2)).to(wide) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~layout.window_mask(length, window), float("-inf"))
    if sinks is not None:  # one more column that takes probability and gives nothing
        sink = sinks.to(wide).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], -1)
    weights = scores.softmax(-1)[..., :length].to(v.dtype)
    return F.dropout(weights, dropout, dropout > 0) @ v


def _varlen(q_THD, k_THD, v_THD, layout, scale, window):
    """The CUDA path: [T, H, D] -> [T, H, D] in one kernel."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(b - a for a, b in zip(layout.bounds, layout.bounds[1:], strict=False))
    left = -1 if not window else window - 1
    return varlen_attn(q_THD, k_THD, v_THD, layout.cu_seqlens, layout.cu_seqlens, longest, longest, scale=scale,
                       window_size=(left, 0), enable_gqa=q_THD.shape[1] != k_THD.shape[1])


def _no_mask(*args, **kwargs):
    return None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)
