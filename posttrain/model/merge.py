"""An adapter put into its base: whole weights in one plain Hugging Face folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from ..core.errors import UserError
from .export import generation_config
from .policy import Policy, open_model
from .resolve import ModelRef


def merged_policy(ref: ModelRef, *, device: str = "auto", trust_remote_code: bool = False) -> Policy:
    """The model behind an adapter, or a checkpoint of one, with W' in place of W and its adapter; all in float32.

        lora: W' = W + s B A;   dora: W' = m (W + s B A) / |W + s B A|;   qlora: with W as its codes stand for it
    PEFT does the arithmetic, in float32 whatever the base is stored in: rounding comes last, and once.
    """
    policy = open_model(ref, dtype="float32", device=device, trust_remote_code=trust_remote_code, unpacked=True)
    if "score" in policy.heads:
        raise UserError("a reward model's score cannot be merged into a model that writes", where=ref.name,
                        found="a checkpoint of `posttrain reward`", fix="finish the run: its model folder holds both")
    policy.model = policy.model.merge_and_unload(safe_merge=True).eval()
    return policy


def write_merged(folder: Path, policy: Policy, spec: Any, dtype: torch.dtype) -> None:
    """Whole weights in `dtype` as safetensors, the tokenizer with its template, the generation settings with its stops.

    Weights are lowered in place, so the last call of several is the one in the lowest type.
    """
    folder.mkdir(parents=True)
    model = policy.model
    for p in model.parameters():
        p.data = p.data.to(dtype)
    model.config.dtype = dtype
    model.save_pretrained(folder)
    spec.save(folder)
    own = policy.ref.adapter if policy.ref is not None else None
    if own and (own / "generation_config.json").is_file():
        GenerationConfig.from_pretrained(own).save_pretrained(folder)
    else:
        generation_config(model, spec).save_pretrained(folder)
