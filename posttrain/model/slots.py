"""The sampler's key/value cache: rows that end at one common column, so that slots can leave and join at any step."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from .memory import installed

MOST_SLOTS = 256  # beyond it a step takes as much longer as it does more
SHARE = 8  # a sampler takes an eighth of the device's memory


def fitting_slots(model, columns: int) -> int:
    """Rows of so many columns whose keys, values and logits take at most an eighth of the device's memory: 1 to 256.

    It follows from model and machine, not from what is free, so a run that is resumed samples in the same batches.
    """
    config, weight = model.config.get_text_config(decoder=True), model.get_input_embeddings().weight
    heads = getattr(config, "num_attention_heads", None) or 1
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * width
    row = columns * kept * weight.element_size() + 16 * weight.shape[0]  # four float32 tensors of logits while drawing
    return max(1, min(MOST_SLOTS, installed(weight.device) // SHARE // row))


def slot_layers(config) -> int | None:
    """Number of layers whose cache is plain keys and values, or None if any layer keeps another kind of state.

    Sliding-window layers count as plain: they are kept whole here, and the model's own mask does the sliding.
    Kept by test_sample.py::test_state_space_models_are_sampled_one_by_one.
    """
    kinds = set(getattr(config.get_text_config(decoder=True), "layer_types", None) or [])
    if kinds - {"full_attention", "sliding_attention"}:
        return None
    layers = DynamicCache(config=config).layers
    return len(layers) if all(type(la) in (DynamicLayer, DynamicSlidingWindowLayer) for la in layers) else None


class Window:
    """What the next forward sees of every layer's buffer: rows [first, last), columns [base, base + filled)."""

    def __init__(self, slots: int, columns: int):
        self.slots, self.columns = slots, columns
        self.first, self.last, self.base, self.filled = 0, 0, 0, 0


class SlotLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers [slots, heads, columns, width], written in place."""

    is_sliding = False

    def __init__(self, window: Window):
        super().__init__()
        self.window = window

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._buffer(s) for s in (key_states, value_states))
        self.is_initialized = True

    def _buffer(self, like: torch.Tensor) -> torch.Tensor:
        # Zeros: columns left of a row's first token are read with attention 0, and 0 times what lay there must be 0.
        return like.new_zeros(self.window.slots, like.shape[1], self.window.columns, like.shape[3])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Write [rows, heads, q, width] after what the window shows; return the window with them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        w = self.window
        end = w.base + w.filled
        rows, new = slice(w.first, w.last), slice(end, end + key_states.shape[2])
        self.keys[rows, :, new] = key_states
        self.values[rows, :, new] = value_states
        if not w.filled:
            return key_states, value_states
        seen = slice(w.base, new.stop)
        return self.keys[rows, :, seen], self.values[rows, :, seen]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.filled + query_length, 0

    def get_seq_length(self) -> int:
        return self.window.filled

    def get_max_length(self) -> int:
        return -1

    def copy_row(self, source: int, target: int) -> None:
        self.keys[target].copy_(self.keys[source])
        self.values[target].copy_(self.values[source])

    def refit(self, live: int, source: slice, shift: int) -> None:
        """Move columns `source` of the first `live` rows to column `shift` of a buffer of the window's new size."""
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = self._buffer(old)
            new[:live, :, shift:shift + source.stop - source.start] = old[:live, :, source]
            setattr(self, name, new)


class SlotCache(Cache):
    """A cache of `slots` rows whose last tokens share one column, `end`; shorter rows begin further right.

    Right-aligned rows let the model's own masks (causal, sliding, padding) work on column differences, while rows of
    any length leave (the last row takes their place) and join (written to end at `end`) without moving the others.
    """

    def __init__(self, layers: int, slots: int, columns: int):
        self.window = Window(slots, columns)
        super().__init__(layers=[SlotLayer(self.window) for _ in range(layers)])
        self.end = 0

    def look(self, first: int, last: int, filled: int, base: int) -> None:
        """Aim the next forward at rows [first, last) with `filled` columns, from `base`, already there."""
        w = self.window
        w.first, w.last, w.base, w.filled = first, last, base, filled

    def room(self, live: int, longest: int, incoming: int, ahead: int) -> None:
        """Make sure that `incoming` columns fit left of `end` and one more right of it; drop columns none needs.

        `longest` is the length of the longest of the first `live` rows; `ahead` bounds the columns still to come.
        """
        w = self.window
        if incoming <= self.end and self.end < w.columns:
            return
        end = max(longest, incoming)
        if live == 0 and end < w.columns:
            self.end = end
            return
        w.columns = end + max(1, min(ahead, max(256, end)))
        for layer in self.layers:
            if layer.is_initialized:
                layer.refit(live, slice(self.end - longest, self.end), end - longest)
        self.end = end

    def fill(self, hole: int, last: int) -> None:
        """Row `last` takes the place of row `hole`."""
        for layer in self.layers:
            layer.copy_row(last, hole)
