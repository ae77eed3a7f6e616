"""LoRA through PEFT: which layers, how many parameters, and rows for new tokens."""

from __future__ import annotations

import difflib
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

from ..core.errors import UserError
from ..core.seeds import seed_for


def add_lora(model, *, r: int, alpha: float, dropout: float, targets: list[str], seed: int,
             new_tokens: list[int] | None = None):
    """Wrap a causal model with fresh float32 adapters; `new_tokens` are embedding rows to be trained too.

    W' = W + (alpha / r) B A, with A random and B zero, so the first forward is the base's (Hu et al. 2021, eq. 3).
    A target that matches no layer is a UserError with the nearest names.
    """
    chosen = "all-linear" if targets == ["all-linear"] else targets
    if chosen != "all-linear":
        _check_targets(model, targets)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, task_type="CAUSAL_LM",
                        trainable_token_indices=new_tokens or None)
    torch.manual_seed(seed_for(seed, "adapters"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about fan_in_fan_out, which it sets itself
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as e:
            raise UserError("PEFT cannot place the adapters", where="lora_target_modules", found=str(e)) from None


def attach_adapter(model, folder: Path, *, trainable: bool):
    """The base with an existing adapter on it, in float32, trainable or for inference."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, str(folder), is_trainable=trainable, autocast_adapter_dtype=True)


def _check_targets(model, targets: list[str]) -> None:
    from transformers.pytorch_utils import Conv1D

    linear = sorted({n.rsplit(".", 1)[-1] for n, m in model.named_modules()
                     if isinstance(m, torch.nn.Linear | Conv1D)})
    for target in targets:
        if not any(n == target or n.endswith("." + target) for n, _ in model.named_modules()):
            near = difflib.get_close_matches(target, linear, n=3, cutoff=0.3) or linear
            raise UserError("a LoRA target matches no layer", where="lora_target_modules", found=target,
                            expected=f"one of: {', '.join(linear)}", fix=f"nearest: {', '.join(near)}")


def count_parameters(model) -> tuple[int, int]:
    """(trainable, total) parameters, tied ones counted once."""
    total = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.parameters() if p.requires_grad), total


def grow_embeddings(model, size: int) -> list[int]:
    """Give the model embedding rows up to `size`, never fewer than it has -> ids of the new rows.

    A new row starts as the mean of the old ones (Hewitt 2021), in the input and output embedding alike.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    if size <= rows:
        return []
    model.resize_token_embeddings(size, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None and module.weight.shape[0] == size:
            with torch.no_grad():
                module.weight[rows:] = module.weight[:rows].float().mean(0).to(module.weight.dtype)
    return list(range(rows, size))
