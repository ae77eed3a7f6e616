"""The one sampler: chat, demo, evaluation and rollouts all generate through it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ..core.errors import UserError
from .draw import draw, uniform
from .load import table_of_positions
from .slots import SlotCache, fitting_slots, slot_layers

PREFILL_TOKENS = 4096  # prompt tokens, padding included, in one forward: bounds activations, never changes a result
OnToken = Callable[[int, int], None]


@dataclass(slots=True)
class Generation:
    """What one prompt became: new ids [N], the stop token last if `stopped`, and the log-prob of each [N], in nats.

    The log-probs are those of softmax(logits / temperature) before top_k and top_p; at temperature 0, of the model's
    own distribution (temperature 1).
    """

    ids: list[int] = field(default_factory=list)
    stopped: bool = False
    logprobs: list[float] = field(default_factory=list)

    @property
    def answer_ids(self) -> list[int]:
        """The ids without the stop token: what a reader sees."""
        return self.ids[:-1] if self.stopped else self.ids


@dataclass(slots=True)
class _Choice:
    """How tokens are chosen and when a row ends."""

    stop_ids: frozenset[int]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    on_token: OnToken | None
    keys: list[int]

    def pick(self, logits_BV: torch.Tensor, indices: list[int], positions: list[int]):
        """Next ids of the rows of these prompts at these positions: ids_B on the device, ids and log-probs as lists."""
        uniform_B = None
        if self.temperature > 0:
            numbers = uniform(self.seed, np.asarray([self.keys[i] for i in indices]), np.asarray(positions))
            uniform_B = torch.from_numpy(numbers).to(logits_BV.device)
        ids_B, logprobs_B = draw(logits_BV, uniform_B, self.temperature, self.top_k, self.top_p)
        return ids_B, ids_B.tolist(), logprobs_B.tolist()

    def record(self, result: Generation, index: int, token: int, logprob: float) -> None:
        result.ids.append(token)
        result.logprobs.append(logprob)
        result.stopped = token in self.stop_ids
        if self.on_token:
            self.on_token(index, token)


@torch.no_grad()  # not inference_mode: a rotary cache made here may be used by a later training forward
def generate(model, prompts: list[list[int]], *, max_new_tokens: int, stop_ids, temperature: float = 0.0,
             top_p: float = 1.0, top_k: int = 0, seed: int = 0, batch_size: int | None = None,
             on_token: OnToken | None = None, keys: list[int] | None = None) -> list[Generation]:
    """Continue each prompt until a stop id or `max_new_tokens`; B prompts of ids -> B Generations, in order.

    Rows share forwards, at most `batch_size` at a time (by default as many as `fitting_slots` says); a finished row
    leaves at once and a waiting one takes its slot. Temperature 0 is greedy. Random numbers are keyed by (seed, prompt
    index or `keys`, position), so a result depends on neither the batch nor its size
    (test_sample.py::test_sampling_ignores_the_rest_of_the_batch).
    `on_token(index, id)` is called for every new id, the stop id included. Models that keep another state than keys
    and values (state-space and hybrid models, prompt tuning) are sampled one by one through their own `generate`.
    """
    assert all(prompts), "a prompt needs at least one token"
    base = _plain_model(model)
    limits = _limits(base, prompts, max_new_tokens)
    choice = _Choice(frozenset(stop_ids), temperature, top_k, top_p, seed, on_token,
                     list(range(len(prompts))) if keys is None else keys)
    results = [Generation() for _ in prompts]
    with sampling(model):
        if one_by_one_reason(model):
            for index, prompt in enumerate(prompts):
                _alone(model, prompt, index, limits[index], choice, results[index])
        else:
            columns = max(map(len, prompts), default=0) + max(limits, default=0)
            _Batch(base, prompts, limits, choice, results, batch_size or fitting_slots(base, columns)).run()
    return results


def one_by_one_reason(model) -> str | None:
    """Why this model's rows cannot share a forward, or None if they can."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "its adapter adds virtual tokens to the cache"
    base = _plain_model(model)
    accepted = inspect.signature(base.forward).parameters
    if getattr(base, "_is_stateful", False) or "attention_mask" not in accepted or not cache_keyword(base):
        return "its state is no cache of keys and values"
    if slot_layers(base.config) is None:
        return "some of its layers keep a state that cannot be padded"
    return None


def cache_keyword(base) -> str | None:
    """What a model's forward calls the cache of keys and values: `cache` from transformers 5.24 on."""
    accepted = inspect.signature(base.forward).parameters
    return next((name for name in ("cache", "past_key_values") if name in accepted), None)


def _plain_model(model):
    """The transformers model inside a PEFT wrapper (its adapters stay in place), or the model itself."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


@contextlib.contextmanager
def sampling(model) -> Iterator[None]:
    """Evaluation mode and an attention that reads a cache, for a while; both are put back as they were."""
    base = _plain_model(model)
    training, implementation = model.training, base.config._attn_implementation
    cached = _cached_attention(base) if implementation not in ("sdpa", "eager") else implementation
    modes = {m: m.training for m in model.modules()} if training else {}
    model.eval()
    if cached != implementation:
        base.set_attn_implementation(cached)
    head = base.get_output_embeddings()
    hook = head.register_forward_pre_hook(_in_one_piece) if head is not None else contextlib.nullcontext()
    try:
        with hook:
            yield
    finally:
        if cached != implementation:
            base.set_attn_implementation(implementation)
        for module, mode in modes.items():
            module.training = mode


def _in_one_piece(head, given):
    """The last positions as a tensor of their own: for a slice of many rows torch multiplies by one copy of a frozen
    head for each row (10 GB for 32 rows of 0.6B)."""
    return (given[0].contiguous(), *given[1:])


def _cached_attention(base) -> str:
    """sdpa where the model allows it and no soft cap asks for eager."""
    config = base.config.get_text_config(decoder=True)
    capped = getattr(config, "attn_logit_softcapping", None) is not None
    return "sdpa" if getattr(base, "_supports_sdpa", False) and not capped else "eager"


def _limits(base, prompts: list[list[int]], max_new_tokens: int) -> list[int]:
    """New tokens each prompt may get: fewer where learned positions run out."""
    places = table_of_positions(base)
    if places is None:
        return [max_new_tokens] * len(prompts)
    longest = max(range(len(prompts)), key=lambda i: len(prompts[i]), default=None)
    if longest is not None and len(prompts[longest]) >= places:
        raise UserError("a prompt is longer than the model's positions", where=f"prompt {longest + 1}",
                        found=f"{len(prompts[longest])} tokens", expected=f"fewer than {places}",
                        fix="shorten the prompt")
    return [min(max_new_tokens, places - len(p)) for p in prompts]


class _Batch:
    """Rows under generation. Row r of the cache belongs to prompt live[r]; lengths_B counts its tokens in the cache."""

    def __init__(self, base, prompts, limits, choice: _Choice, results: list[Generation], slots: int):
        self.base, self.prompts, self.limits, self.choice, self.results = base, prompts, limits, choice, results
        # Taken from the back, longest first: rows that start together are alike, and later ones fit left of the end.
        self.queue = sorted((i for i in range(len(prompts)) if limits[i] > 0),
                            key=lambda i: (len(prompts[i]), prompts[i], i))
        self.slots = max(1, min(slots, len(self.queue)))
        self.live: list[int] = []
        self.lengths: list[int] = []
        self.device = base.get_input_embeddings().weight.device
        self.last_B = torch.empty(0, dtype=torch.long, device=self.device)
        self.most = max(limits, default=1)
        longest = len(prompts[self.queue[-1]]) if self.queue else 0
        self.cache = SlotCache(slot_layers(base.config), self.slots, longest + max(1, min(self.most, 256)))
        accepted = inspect.signature(base.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.always = {"use_cache": True, cache_keyword(base): self.cache}
        if "logits_to_keep" in accepted:
            self.always["logits_to_keep"] = 1

    def run(self) -> None:
        while self.queue or self.live:
            free = self.slots - len(self.live)
            if self.queue and (not self.live or free * 4 >= self.slots):
                self._admit(free)
            if self.live:
                self._step()

    def _admit(self, free: int) -> None:
        """Prefill waiting prompts into free rows, a few at a time, so that no forward exceeds PREFILL_TOKENS."""
        longest = len(self.prompts[self.queue[-1]])
        self.cache.room(len(self.live), max(self.lengths, default=0), longest, self.most)
        while free and self.queue:
            length = len(self.prompts[self.queue[-1]])
            group: list[int] = []
            while self.queue and len(group) < free and (not group or (len(group) + 1) * length <= PREFILL_TOKENS):
                group.append(self.queue.pop())
            free -= len(group)
            self._prefill(group, length)

    def _prefill(self, group: list[int], width: int) -> None:
        """Run the prompts of `group` (sorted, equal ones adjacent; equal ones once) and choose their first tokens."""
        first, unique, of_row = len(self.live), [], []
        for i in group:
            if not unique or self.prompts[unique[-1]] != self.prompts[i]:
                unique.append(i)
            of_row.append(len(unique) - 1)
        rows = [self.prompts[i] for i in unique]
        ids_BL = torch.tensor([[0] * (width - len(r)) + r for r in rows], device=self.device)
        lengths = [len(r) for r in rows]
        for start in range(0, width, PREFILL_TOKENS):
            piece_BL = ids_BL[:, start:start + PREFILL_TOKENS]
            self.cache.look(first, first + len(rows), start, self.cache.end - width)
            logits_BV = self._forward(piece_BL, lengths, width)
        for row in range(len(group) - 1, -1, -1):  # from the back: a row is read before it is written
            if of_row[row] != row:
                self.cache.fill(first + row, first + of_row[row])
        if len(unique) < len(group):
            logits_BV = logits_BV[torch.tensor(of_row, device=self.device)]
        self.live += group
        self.lengths += [len(self.prompts[i]) for i in group]
        chosen_B = self._choose(logits_BV, first)
        self.last_B = torch.cat([self.last_B, chosen_B])
        self._leave(first)

    def _forward(self, ids_BL: torch.Tensor, lengths: list[int], width: int) -> torch.Tensor:
        """Last-position logits [B, V] of the rows in the window; `width` columns are seen at the end of the prefill."""
        seen = self.cache.window.filled + ids_BL.shape[1]
        extra = dict(self.always)
        pads = [width - n for n in lengths]
        pads_B1 = torch.tensor(pads, device=self.device)[:, None]
        if any(pads):
            extra["attention_mask"] = torch.arange(seen, device=self.device) >= pads_B1
        if self.takes_positions:
            columns = torch.arange(self.cache.window.filled, seen, device=self.device)
            extra["position_ids"] = (columns - pads_B1).clamp_(min=0)
        return self.base(input_ids=ids_BL, **extra).logits[:, -1]

    def _step(self) -> None:
        """One new token for every live row."""
        longest = max(self.lengths)
        self.cache.room(len(self.live), longest, longest, self.most)
        self.cache.look(0, len(self.live), longest, self.cache.end - longest)
        lengths = [n + 1 for n in self.lengths]
        logits_BV = self._forward(self.last_B[:, None], lengths, longest + 1)
        self.cache.end += 1
        self.lengths = lengths
        self.last_B = self._choose(logits_BV, 0)
        self._leave(0)

    def _choose(self, logits_BV: torch.Tensor, first: int) -> torch.Tensor:
        indices = self.live[first:]
        chosen_B, ids, logprobs = self.choice.pick(logits_BV, indices, self.lengths[first:])
        for index, token, logprob in zip(indices, ids, logprobs, strict=True):
            self.choice.record(self.results[index], index, token, logprob)
        return chosen_B

    def _leave(self, first: int) -> None:
        """Finished rows give up their slots; the last row moves into each hole."""
        order = list(range(len(self.live)))
        for row in range(len(order) - 1, first - 1, -1):
            index = self.live[row]
            if self.results[index].stopped or len(self.results[index].ids) >= self.limits[index]:
                last = len(order) - 1
                if row != last:
                    self.cache.fill(row, last)
                for rows in (self.live, self.lengths, order):
                    rows[row] = rows[last]
                    rows.pop()
        if len(order) < len(self.last_B):
            self.last_B = self.last_B[torch.tensor(order, dtype=torch.long, device=self.device)]


class _Chooser(LogitsProcessor):
    """Lets a model's own `generate` emit the token that `draw` chooses."""

    def __init__(self, prompt_length: int, index: int, choice: _Choice, result: Generation):
        self.prompt_length, self.index, self.choice, self.result = prompt_length, index, choice, result

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        position = self.prompt_length + len(self.result.ids)
        chosen_B, ids, logprobs = self.choice.pick(scores, [self.index], [position])
        self.choice.record(self.result, self.index, ids[0], logprobs[0])
        return torch.full_like(scores, -torch.inf).scatter(1, chosen_B[:, None], 0.0)


def _alone(model, prompt: list[int], index: int, limit: int, choice: _Choice, result: Generation) -> None:
    """One prompt through transformers' generate, with our choice of tokens and none of the folder's settings."""
    if limit < 1:
        return
    base = _plain_model(model)
    ids_1L = torch.tensor([prompt], device=base.get_input_embeddings().weight.device)
    settings = GenerationConfig(max_new_tokens=limit, do_sample=False, pad_token_id=0,
                                eos_token_id=sorted(choice.stop_ids) or None)
    kept, base.generation_config = base.generation_config, GenerationConfig()
    try:
        model.generate(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L), generation_config=settings,
                       logits_processor=LogitsProcessorList([_Chooser(len(prompt), index, choice, result)]))
    finally:
        base.generation_config = kept
