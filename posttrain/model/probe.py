"""The load probe: packed must equal separate, and our log-probs the model's own; else the slow, safe path."""

from __future__ import annotations

import torch

from ..core.errors import UserError
from ..core.pack import Pack
from .attention import NAME, UnknownAttention
from .forward import Forward
from .fused import fuse
from .shard import is_sharded

LENGTHS = (9, 14, 6)
# Largest mean difference, in nats, between packed and separate log-probs; the second for two-byte types, whose own
# rounding is of that size. And the share of a token's influence that may leak into another sequence.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
COARSE, LEAK = 4e-2, 2e-2


def prepare_forward(model) -> tuple[Forward, str]:
    """Choose how a model runs packs -> (Forward, what the run says about it).

    Three random sequences go through the flat path together and through the model's own forward one by one. A model
    whose packed log-probs differ, that mixes sequences, or that cannot take our attention at all, runs one sequence
    per forward through its own head (test_probe.py).
    """
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = getattr(causal, "own_attention", causal.config._attn_implementation)
    causal.own_attention = own  # what the slow path uses, and a second probe of the same model
    if not is_sharded(causal):
        fuse(model)
    reason = _refuses(causal)
    was_training = model.training
    model.eval()
    if not reason:
        try:
            causal.set_attn_implementation(NAME)
            reason = _differs(model, causal, own)
        except (UnknownAttention, TypeError, AttributeError, ValueError, KeyError, IndexError, RuntimeError) as e:
            said = str(e).split("\n")[0][:100] or type(e).__name__
            reason = f"it does not take packed attention ({said})"
    model.train(was_training)
    if not reason:
        causal.set_attn_implementation(NAME)
        return Forward(model), "packed rows equal separate rows (checked on this model)"
    causal.set_attn_implementation(own)
    slow = Forward(model, flat=False)
    _works(slow)
    return slow, f"one sequence per forward through its own head: {reason}"


def _refuses(causal) -> str:
    """Why a model cannot run packed, from what it says of itself ('' when it may)."""
    if getattr(causal, "_is_stateful", False):
        return "it has recurrent (state-space or linear-attention) layers, which mix packs"
    kinds = set(getattr(causal.config.get_text_config(), "layer_types", None) or [])
    if odd := kinds - {"full_attention", "sliding_attention"}:
        return f"it has layers of kind {', '.join(sorted(odd))}"
    if not getattr(causal, "_supports_attention_backend", False):
        return "its attention cannot be set from outside"
    return ""


@torch.no_grad()
def _differs(model, causal, own: str) -> str:
    forward = Forward(model)
    if forward.head.module is None:
        return "it has no output head of its own"
    pack, other = _probe_packs(causal.config.get_text_config().vocab_size, forward.device)
    packed, moved = forward(pack).logprobs_T, forward(other).logprobs_T
    causal.set_attn_implementation(own)
    alone = Forward(model, flat=False)(pack).logprobs_T
    first = pack.bounds[1]
    influence = (packed - moved)[2:first].abs().mean().item()
    leak = (packed - moved)[first:].abs().mean().item()
    gap = (packed - alone).abs().mean().item()
    allowed = TOLERANCE.get(forward.dtype, COARSE)
    if not gap <= allowed:
        return f"packed log-probs differ from its own by {gap:.1e} nats (at most {allowed:.0e})"
    if not leak <= max(LEAK * influence, TOLERANCE.get(forward.dtype, 1e-3)):
        return f"a token of one sequence changed another's log-probs by {leak:.1e} nats"
    return ""


def _probe_packs(vocab: int, device) -> tuple[Pack, Pack]:
    """A pack of three random sequences, and the same with the second token of the first changed."""
    generator = torch.Generator().manual_seed(0)
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    ids = torch.randint(0, vocab, (bounds[-1],), generator=generator)
    positions = torch.cat([torch.arange(n) for n in LENGTHS])
    packs = []
    for change in (0, 1):
        shown = ids.clone()
        shown[1] = (shown[1] + change) % vocab
        weights = torch.ones(len(ids))
        weights[torch.tensor(bounds[1:]) - 1] = 0
        pack = Pack(shown, positions, ids.roll(-1), weights, bounds, ["probe"] * 3, [0] * 3, [0, 1, 2, 3])
        packs.append(pack.to(device))
    return packs[0], packs[1]


@torch.no_grad()
def _works(forward: Forward) -> None:
    pack, _ = _probe_packs(forward.causal.config.get_text_config().vocab_size, forward.causal.device)
    if not torch.isfinite(forward(pack).logprobs_T).all():
        raise UserError("the model gives no finite log-probabilities", where=forward.causal.config.name_or_path,
                        fix="check its weights; with dtype: float32 the cause may be range")
