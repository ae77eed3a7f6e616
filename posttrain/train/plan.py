"""What a run will hold and cost, before it starts: from the model's config alone, without a weight of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from ..core.config import Settings
from ..core.errors import UserError
from ..model.adapters import add_lora
from ..model.policy import kept_wide, lower, recompute_activations
from .optim import PIECE
from .trace import Phases, build, trace

METHODS = ("full", "lora", "qlora")
# NF4 with double quantization (Dettmers et al. 2023, §3): 4 bits, an 8-bit constant per 64, a float32 per 64 · 256.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
# What a process on CPU takes besides tensors: pages of libraries that the first products touch and compiled kernels;
# the tokenizer's tables, by entry (136 MB for Qwen3's 151,936); holes that tensors leave in the heap, as so many
# hidden states of every token in every layer. Set from the runs in docs/memory.md.
RUNTIME, TOKENIZER, HOLES = 142 << 20, 900, 3
MOST = 16384  # tokens of a pack beyond which a forward gains nothing
STEP = 128  # the largest pack is a multiple of it
SHORTEST = 128  # rows shorter than this are no answer to a full memory


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes by part, and `peak`, the most that is alive at once: gradients come as activations go, so it is less than
    the sum. `exact` is false where the model could not be traced and activations are a rule of thumb."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logprobs: int
    runtime: int
    peak: int
    exact: bool = True

    @property
    def parts(self) -> dict[str, int]:
        return {k: v for k, v in asdict(self).items() if k not in ("peak", "exact")}


@dataclass
class Planner:
    """Arithmetic over one config and one set of settings; `cpu` says where it runs, `needs` what the objective asks,
    `most` how many tokens the largest update of the run has, where that is known.

    Pairs of sequences, heads and reference models of other objectives are not counted here; a rehearsal is.
    """

    config: Any
    settings: Settings
    dtype: torch.dtype
    cpu: bool
    needs: frozenset[str] = frozenset({"logprobs"})
    most: int | None = None
    _traced: dict = field(default_factory=dict)

    @cached_property
    def model(self):
        """The whole model, without bytes; a UserError where transformers builds no causal model of the config."""
        try:
            return build(self.config, self.dtype, trust_remote_code=self.settings.trust_remote_code)
        except (ValueError, TypeError, RuntimeError, AttributeError) as e:
            raise UserError("no causal language model can be built from this config", where=self.settings.model,
                            found=str(e).split("\n")[0][:200], fix="check its model_type and shapes") from None

    @property
    def halves(self) -> bool:
        """Whether the model computes in bf16 and the optimizer holds the lower halves of its float32 masters."""
        return self.dtype == torch.bfloat16

    @cached_property
    def total(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(p.numel() for p in self.model.parameters())

    @cached_property
    def matrices(self) -> list[tuple[str, int, int]]:
        """(name, in, out) of each linear layer but the output head: what is quantized, and what gets adapters."""
        from transformers.pytorch_utils import Conv1D

        head = self.model.get_output_embeddings()
        return [(n, *(m.weight.shape if isinstance(m, Conv1D) else m.weight.shape[::-1]))
                for n, m in self.model.named_modules() if isinstance(m, torch.nn.Linear | Conv1D) and m is not head]

    @cached_property
    def adapted(self) -> list[tuple[int, int]]:
        """(in, out) of each layer that gets an adapter, by name or, of all-linear, every matrix but the head."""
        wanted = self.settings.lora_target_modules
        if wanted == ["all-linear"]:
            return [(a, b) for _, a, b in self.matrices]
        named = {n: (a, b) for n, a, b in self.matrices}
        for n, m in self.model.named_modules():  # the head and the embedding only where they are named
            if n not in named and isinstance(m, torch.nn.Linear | torch.nn.Embedding):
                named[n] = tuple(m.weight.shape[::-1])
        return [size for n, size in named.items() if any(n == t or n.endswith("." + t) for t in wanted)]

    def trained(self, method: str) -> int:
        """Parameters that are trained: all, or r · (in + out) of each layer with an adapter (Hu et al. 2021, §4.1), and
        with DoRA a length for each of its outputs (Liu et al. 2024, eq. 5)."""
        if method == "full":
            return self.total
        return sum(self.settings.lora_r * (a + b) + b * self.settings.use_dora for a, b in self.adapted)

    def weights(self, method: str) -> int:
        """Bytes of the weights as the model computes with them: adapters in the compute type, like all else."""
        size = self.dtype.itemsize
        if method == "full":
            return self.total * size
        adapters = self.trained(method) * size
        if method == "lora":
            return self.total * size + adapters
        quantized = sum(a * b for _, a, b in self.matrices)
        return int(quantized * NF4_BYTES) + (self.total - quantized) * size + adapters

    def least(self, method: str) -> int:
        """Bytes that a run holds whatever its packs: weights and optimizer."""
        wide = max(4, self.dtype.itemsize)
        return self.weights(method) + self.trained(method) * (2 * wide + 2 * self.halves)

    def phases(self, method: str, tokens: int, checkpointing: bool, several: bool) -> tuple[Phases, bool]:
        """What an update holds above weights and optimizer, and whether it was traced."""
        key = (method == "full", tokens, checkpointing, several)
        if key not in self._traced:
            def make(layers: int):
                model = build(self.config, self.dtype, layers, self.settings.trust_remote_code)
                if method != "full":
                    model = self._adapted(model)
                if checkpointing:
                    recompute_activations(model)
                return model.train()

            text = self.config.get_text_config()
            try:
                found = trace(make, text.num_hidden_layers, tokens, self.settings.longest, cpu=self.cpu,
                              sums=several and self.halves, needs=self.needs), True
            except (RuntimeError, NotImplementedError, UserError):  # no kernel without bytes; PEFT takes no such layer
                found = self._by_thumb(tokens, checkpointing), False
            self._traced[key] = found
        phases, traced = self._traced[key]
        if method == "qlora":  # one layer's matrix at a time is taken out of its 4 bits
            wide = max((a * b for _, a, b in self.matrices), default=0) * self.dtype.itemsize
            phases = Phases(phases.saved, phases.forward + wide, phases.head, phases.top + wide, phases.bottom + wide)
        return phases, traced

    def _adapted(self, model):
        settings = self.settings
        model.requires_grad_(False)
        with torch.device("meta"):
            model = add_lora(model, r=settings.lora_r, alpha=settings.lora_alpha, dropout=settings.lora_dropout,
                             targets=settings.lora_target_modules, seed=settings.seed, dora=settings.use_dora,
                             rslora=settings.use_rslora)
        if self.halves:
            lower(model, self.dtype, kept_wide(model))
        return model

    def _by_thumb(self, tokens: int, checkpointing: bool) -> Phases:
        """Where a model cannot run without bytes: 20 values of the width and 5 of the inner width a layer and token."""
        text = self.config.get_text_config()
        wide, inner = text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        layer, size = tokens * (20 * wide + 5 * inner), self.dtype.itemsize
        kept = tokens * wide if checkpointing else layer
        saved = text.num_hidden_layers * kept * size
        return Phases(saved, saved, saved + (512 << 20), saved + 2 * layer * size, 2 * layer * size)

    def sizes(self, method: str, tokens: int, checkpointing: bool, several: bool) -> Sizes:
        """Every part of a run of this method on packs of so many tokens, `several` of them to an update."""
        trained = self.trained(method)
        wide = max(4, self.dtype.itemsize)
        weights = self.weights(method)
        optimizer = self.least(method) - weights
        gradients = trained * (wide if several or not self.halves else self.dtype.itemsize)
        phases, traced = self.phases(method, tokens, checkpointing, several)
        piece = 2 * wide * min(trained, PIECE["cpu" if self.cpu else "cuda"])
        summed = trained * wide if several and self.halves else 0
        rows, width = self.model.get_input_embeddings().weight.shape
        holes = HOLES * tokens * width * self.config.get_text_config().num_hidden_layers * self.dtype.itemsize
        runtime = RUNTIME + TOKENIZER * rows + holes if self.cpu else 0
        peak = weights + optimizer + runtime + max(summed + phases.peak, gradients + piece)
        return Sizes(weights, gradients, optimizer, int(phases.saved), int(max(0, phases.head - phases.saved)), runtime,
                     int(peak), traced)

    def run_of(self, method: str, pack_tokens: int, checkpointing: bool) -> Sizes:
        """The same of a run with this `pack_tokens`: an update may be smaller than a pack, or several packs."""
        tokens = pack_tokens if self.most is None else min(pack_tokens, self.most)
        return self.sizes(method, tokens, checkpointing, self.most is None or self.most > pack_tokens)

    def fits(self, change: dict[str, Any], available: int) -> bool:
        """Whether a run with these keys set over the settings stays within `available`."""
        asked = {k: getattr(self.settings, k) for k in ("method", "pack_tokens", "gradient_checkpointing")} | change
        return self.run_of(asked["method"], asked["pack_tokens"], asked["gradient_checkpointing"]).peak <= available

    def largest_pack(self, method: str, checkpointing: bool, available: int) -> int | None:
        """Most tokens of a pack, of at most MOST or `pack_tokens`, within `available`; None where not one sequence
        fits. A multiple of STEP beyond `max_length`."""
        least, kept = self.settings.longest, self.settings.pack_tokens
        most = max(MOST, least, kept if isinstance(kept, int) else 0)

        def peak(tokens: int) -> int:
            return self.run_of(method, tokens, checkpointing).peak

        if self.least(method) > available or peak(least) > available:
            return None
        low, high = least, min(most, 2 * least)  # `low` fits; beyond it in leaps until one does not
        while peak(high) <= available:
            if high == most:
                return most
            low, high = high, min(most, 4 * high)
        guess = low + int((available - peak(low)) / (peak(high) - peak(low)) * (high - low))  # memory is nearly linear
        while high - low > STEP:
            tokens = max(low + 1, min(guess, high - 1)) // STEP * STEP
            tokens = tokens if tokens > low else (low // STEP + 1) * STEP
            low, high = (tokens, high) if peak(tokens) <= available else (low, tokens)
            guess = (low + high) // 2
        whole = (low // least + 1) * least  # packs of whole sequences may take less than a little smaller ones
        return whole if whole <= most and peak(whole) <= available else low

    def change(self, available: int) -> dict[str, Any] | None:
        """The fewest keys whose change makes the run fit, the mildest first; None where nothing does."""
        settings = self.settings
        for method in METHODS[METHODS.index(settings.method):]:
            if self.least(method) > available:
                continue
            asked: dict[str, Any] = {} if method == settings.method else {"method": method}
            if asked and self.fits(asked, available):
                return asked
            for more in ({}, {"gradient_checkpointing": True}):
                recompute = bool(more) or settings.gradient_checkpointing
                if more and settings.gradient_checkpointing:
                    continue
                if more and self.fits(asked | more, available):
                    return asked | more
                largest = self.largest_pack(method, recompute, available)
                if largest and largest < settings.pack_tokens:
                    return asked | more | {"pack_tokens": largest}
        return self._shorter(available)

    def _shorter(self, available: int) -> dict[str, Any] | None:
        """The last resort: shorter rows, by halves, with the least method and recomputed activations."""
        if self.least("qlora") > available:
            return None
        shortest = self.settings.longest // 2
        while shortest >= SHORTEST:
            asked = {"method": "qlora", "gradient_checkpointing": True, "pack_tokens": shortest}
            shorter = self.settings.model_copy(update={"max_length": shortest})
            planner = replace(self, settings=shorter, _traced={})
            planner.model = self.model  # the same, built already
            if planner.fits(asked, available):
                kept = {k: v for k, v in asked.items() if v != getattr(self.settings, k)}
                return kept | {"max_length": shortest}
            shortest //= 2
        return None

    def disk(self, method: str, stored: int) -> tuple[int, int]:
        """(bytes of a checkpoint, bytes of the model folder's weights at `stored` bytes a parameter)."""
        trained = self.trained(method)
        wide = max(4, self.dtype.itemsize)
        return trained * 3 * wide, trained * (stored if method == "full" else wide)

    def flops(self, method: str, checkpointing: bool) -> int:
        """Floating-point operations per token: 2 a weight forward, 2 for what goes back, 2 for trained weights.

        Attention adds 4 · length · width of the heads a layer in the forward, halved by causality, twice that in the
        backward; recomputing adds a forward. Embedding rows are looked up, not multiplied (Kaplan et al. 2020, §2.1).
        """
        text = self.config.get_text_config()
        head = self.model.get_output_embeddings()
        matrices = sum(a * b for _, a, b in self.matrices)
        moe = sum(p.numel() for n, p in self.model.named_parameters() if "expert" in n and p.dim() > 2)
        used = getattr(text, "num_experts_per_tok", None) or 1
        experts = getattr(text, "num_local_experts", None) or getattr(text, "num_experts", None) or 1
        products = 2 * (matrices + head.weight.numel() + moe * used // experts)
        count = getattr(text, "num_attention_heads", None) or 0  # none: recurrent layers alone
        heads = count * (getattr(text, "head_dim", None) or text.hidden_size // max(1, count))
        attention = 2 * text.num_hidden_layers * heads * self.settings.longest
        forward = products + attention
        through = 2 * products if method == "full" else products + 6 * self.trained(method)
        return forward * (2 if checkpointing else 1) + through + 2 * attention


def told(change: dict[str, Any] | None) -> str:
    """A change of keys as a person types it."""
    if change is None:
        return "take a smaller model, or a machine with more memory: no method fits here"
    return "set " + " and ".join(f"{k}: {str(v).lower() if isinstance(v, bool) else v}" for k, v in change.items())
