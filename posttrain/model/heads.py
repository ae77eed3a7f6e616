"""Scalar heads on the decoder's hidden states: the score of an answer, the value of a state. float32, trained whole."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F

from ..core.errors import UserError
from ..core.seeds import seed_for

HEAD_OF = {"scores": "score", "values": "value"}  # what a forward is asked for -> the head that gives it
PREFIX = "heads."  # of their parameters' names in the optimizer and in checkpoints


class ScalarHead(torch.nn.Module):
    """One number per hidden state: [..., D] -> [...] in the head's own type, float32 or wider.

        s = w · h
    Without bias, as transformers' sequence classification has it (test_heads.py::test_a_head_is_a_product).
    """

    def __init__(self, width: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1, width, dtype=dtype))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return F.linear(hidden.to(self.weight.dtype), self.weight)[..., 0]


def make_heads(model, needs: Iterable[str], seed: int) -> torch.nn.ModuleDict:
    """The heads that a forward with these needs takes, on the model's device.

    score: w ~ N(0, 1 / (D + 1)) (Stiennon et al. 2020; Huang et al. 2024, detail 9); value: w = 0, so that the first
    advantages are the rewards themselves.
    """
    config = model.config.get_text_config()
    wide = torch.promote_types(next(model.parameters()).dtype, torch.float32)
    heads = torch.nn.ModuleDict()
    for need in sorted(set(needs) & set(HEAD_OF)):
        head = heads[HEAD_OF[need]] = ScalarHead(config.hidden_size, wide)
        if need == "scores":
            generator = torch.Generator().manual_seed(seed_for(seed, "score head"))
            head.weight.data.normal_(std=1 / math.sqrt(config.hidden_size + 1), generator=generator)
    return heads.to(model.device)


def read_heads(tensors: dict[str, torch.Tensor], width: int, where: str) -> torch.nn.ModuleDict:
    """The heads among a checkpoint's weights (`heads.score.weight`); one of another width is a UserError."""
    heads = torch.nn.ModuleDict()
    for name, tensor in tensors.items():
        if name.startswith(PREFIX):
            if tuple(tensor.shape) != (1, width):
                raise UserError("a head does not fit the model", where=where, found=f"{name} {list(tensor.shape)}",
                                expected=f"[1, {width}]", fix="name the checkpoint that belongs to this model")
            head = heads[name.split(".")[1]] = ScalarHead(width, tensor.dtype)
            head.weight.data.copy_(tensor)
    return heads
