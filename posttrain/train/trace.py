"""One update on torch's meta device, where tensors have shapes and no bytes: what it would hold, counted exactly.

The code that runs is the run's own (model, adapters, attention, log-probs), so any architecture that can be built is
counted as it is, and nothing here has to follow a change there.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..model import fused
from ..model.attention import NAME, Layout, costliest_length, set_layout
from ..model.forward import ALIGN, STATS, Forward, aligned, token_logprobs
from ..model.shard import layers_of

MEASURED = (2, 3)  # layers of the models that are traced; what a phase holds is linear in their number


@dataclass(frozen=True, slots=True)
class Phases:
    """Bytes above the weights: at most in each phase of an update, and `saved` between forward and backward.

    `forward` through the layers, `head` the log-probs and their gradient, `top` and `bottom` the backward through the
    last and the first layer; what lies between is less than the larger of these two.
    """

    saved: float
    forward: float
    head: float
    top: float
    bottom: float

    @property
    def peak(self) -> float:
        return max(self.forward, self.head, self.top, self.bottom)

    def on(self, other: Phases, at: float, of: tuple[float, float]) -> Phases:
        """The line through self at of[0] and other at of[1], taken at `at`."""
        share = (at - of[0]) / (of[1] - of[0])
        return Phases(*(a + (b - a) * share for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[float, ...]:
        return self.saved, self.forward, self.head, self.top, self.bottom


class Meter(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most of them since `peak` was set."""

    def __init__(self, free: list[torch.Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self._sizes = {t.untyped_storage()._cdata: 0 for t in free}  # known, and not counted

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op is torch.ops.aten._local_scalar_dense.default:
            return 0  # a tensor without bytes has no value: whatever asks hears no
        out = op(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return out

    def _count(self, storage) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def since(self) -> int:
        """The peak since the last call."""
        peak, self.peak = self.peak, self.live
        return peak


def build(config: Any, dtype: torch.dtype, layers: int | None = None, trust_remote_code: bool = False):
    """The model of a config, of its first `layers` layers, in `dtype`, without bytes."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    if layers is not None:
        text = config.get_text_config()
        text.num_hidden_layers = layers
        if kinds := getattr(text, "layer_types", None):
            with contextlib.suppress(AttributeError):  # where it follows from the number of layers
                text.layer_types = kinds[:layers]
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)


def twin(module):
    """A small copy with bytes of a norm or a gated MLP: does its class compute what our own forward does?"""
    small = copy.copy(module)
    dtype = next(module.parameters()).dtype
    if "weight" in module._parameters:
        small._parameters = {"weight": torch.nn.Parameter(torch.linspace(0.5, 1.5, 8, dtype=dtype))}
        return small
    torch.manual_seed(0)
    sizes = {"gate_proj": (8, 16), "up_proj": (8, 16), "down_proj": (16, 8)}
    small._modules = {name: torch.nn.Linear(*sizes[name], bias=part.bias is not None, dtype=dtype)
                      if name in sizes else part for name, part in module._modules.items()}
    small.hidden_size = 8
    return small


def trace(make: Callable[[int], Any], layers: int, tokens: int, max_length: int, *, cpu: bool, sums: bool,
          needs: frozenset[str] = frozenset({"logprobs"})) -> Phases:
    """What an update on one pack of so many tokens holds above the weights, every token trained.

    `make(n)` builds the model with n layers, its trained parameters requiring gradients; `sums`: gradients leave as
    they come, into sums that are counted elsewhere.
    """
    if layers <= max(MEASURED):
        return _trace(make(layers), tokens, max_length, cpu, sums, needs)
    few, more = (_trace(make(n), tokens, max_length, cpu, sums, needs) for n in MEASURED)
    return few.on(more, layers, MEASURED)


def _trace(model, tokens: int, max_length: int, cpu: bool, sums: bool, needs: frozenset[str]) -> Phases:
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    causal.set_attn_implementation(NAME)
    fused.meta_counts = "cpu" if cpu else "cuda"
    with torch.random.fork_rng([]):
        fused.fuse(model, twin)
    few_shapes = cpu and causal.dtype == torch.bfloat16
    bounds = [*range(0, tokens, costliest_length(max_length, few_shapes)), tokens]
    fill = aligned(tokens, ALIGN) - tokens if few_shapes else 0
    layout = Layout(bounds, torch.device("cpu"), few_shapes=few_shapes, padding=fill)
    layout.to("meta")
    set_layout(layout)
    forward = Forward(model)
    meter, peaks = Meter([*model.parameters(), *model.buffers()]), {}
    layers = layers_of(causal)
    for i, name in ((len(layers) - 1, "head"), (max(0, len(layers) - 2), "top"), (0, "middle")):
        layers[i].register_forward_hook(_mark(meter, peaks, name))
    if sums:
        for p in model.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(_drop)
    with meter:
        ids_T = torch.zeros(tokens + fill, dtype=torch.long, device="meta")
        hidden_TD = forward.decoder(input_ids=ids_T[None], position_ids=ids_T[None], use_cache=False
                                    ).last_hidden_state[0]
        peaks["forward"], saved = meter.since(), meter.live
        stats = needs & set(STATS)
        columns = token_logprobs(hidden_TD.index_select(0, ids_T), forward.head, ids_T, stats) if stats else [
            hidden_TD.float()]
        loss = sum(c.sum() for c in columns)
        del hidden_TD, columns
        loss.backward()
    set_layout(None)
    peaks["bottom"] = meter.since()
    return Phases(saved, peaks["forward"], peaks.get("head", 0), max(peaks.get("top", 0), peaks.get("head", 0)),
                  peaks["bottom"])


def _mark(meter: Meter, peaks: dict[str, int], name: str):
    """A forward hook after which the backward, when it reaches that output, closes the phase `name`."""
    def closes(_):
        peaks[name] = max(peaks.get(name, 0), meter.since())

    def watch(module, args, out):
        hidden = out[0] if isinstance(out, tuple) else out
        if hidden.requires_grad:
            hidden.register_hook(closes)
    return watch


def _drop(p: torch.nn.Parameter) -> None:
    p.grad = None
