"""Rollouts: prompts in, sampled answers out, as sequences whose answer tokens weigh 1. There is no second data path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..core.pack import Pack
from ..core.seeds import seed_for
from ..core.sequence import CONTENT, PROMPT, STOP, Row, Sequence
from ..model.sample import generate


@dataclass(slots=True)
class Answer:
    """One sampled answer: `sequence` is prompt and answer [L], `logprobs` [N] those of the sampler, in nats;
    `number` is its place in the collection, whichever process sampled it."""

    sequence: Sequence
    row: Row
    text: str
    stopped: bool
    logprobs: list[float]
    number: int = 0

    @property
    def length(self) -> int:
        """Tokens of the answer, the stop token among them."""
        return len(self.logprobs)


class Rollout:
    """Samples answers of a role (`policy` in training) through the one sampler, which shares prompts and refills slots.

    Answer i of prompt p in collection n has randomness of its own, from (seed, n, p, i): neither the batch, its size
    nor the number of processes changes it (test_ppo.py::test_slots_change_nothing).
    """

    def __init__(self, role: Any, spec: Any, *, max_new_tokens: int, temperature: float, seed: int,
                 slots: int | None = None):
        self.role, self.spec, self.slots, self.seed = role, spec, slots, seed
        self.max_new_tokens, self.temperature = max_new_tokens, temperature

    def __call__(self, packs: Iterable[Pack], collection: int, group: int = 1, greedy: bool = False) -> list[Answer]:
        """`group` answers of each prompt in these packs, those of one prompt adjacent."""
        asked = [row for pack in packs if not pack.idle
                 for row in zip(ids_of(pack), pack.rows, pack.numbers, strict=True)]
        prompts = [(ids, row, number * group + i) for ids, row, number in asked for i in range(group)]
        made = generate(self.role.model, [ids for ids, *_ in prompts], keys=[key for *_, key in prompts],
                        max_new_tokens=self.max_new_tokens, stop_ids=self.spec.stop_ids,
                        temperature=0.0 if greedy else self.temperature,
                        seed=seed_for(self.seed, "rollout", collection), batch_size=self.slots) if prompts else []
        return [Answer(lay(ids, g.ids, g.stopped, row.origin, key), row, self.spec.decode(g.answer_ids).strip(),
                       g.stopped, g.logprobs, key) for (ids, row, key), g in zip(prompts, made, strict=True)]


def ids_of(pack: Pack) -> list[list[int]]:
    """The ids of each sequence of a pack."""
    return [pack.ids_T[a:b].tolist() for a, b in zip(pack.bounds, pack.bounds[1:], strict=False)]


def lay(prompt: list[int], answer: list[int], stopped: bool, origin: str, number: int = 0) -> Sequence:
    """Prompt and answer as one sequence: weight 0 and 1, the stop token among the answer's."""
    reasons = [PROMPT] * len(prompt) + [CONTENT] * len(answer)
    if stopped:
        reasons[-1] = STOP
    weights = np.zeros(len(prompt) + len(answer), np.float32)
    weights[len(prompt):] = 1
    return Sequence(np.asarray(prompt + answer, np.int32), weights, np.asarray(reasons, np.uint8), origin,
                    number=number)


def answer_lengths(pack: Pack) -> list[int]:
    """Tokens of each sequence that weigh something."""
    at = (pack.weights_T != 0).cpu()
    return [int(at[a:b].sum()) for a, b in zip(pack.bounds, pack.bounds[1:], strict=False)]


def spread(values_K: torch.Tensor, pack: Pack) -> torch.Tensor:
    """[K] at the pack's weighted positions -> [T] with 0 elsewhere."""
    where = pack.weights_T != 0
    return torch.zeros(len(where), dtype=values_K.dtype, device=values_K.device).masked_scatter(where, values_K)


def last_user_text(row: Row) -> str:
    """What a reward function is told of a prompt: the last thing that the user said."""
    said = [m.get("content") for m in row.messages if m.get("role") == "user"]
    return said[-1] if said and isinstance(said[-1], str) else ""
