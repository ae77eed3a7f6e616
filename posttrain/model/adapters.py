"""LoRA through PEFT: which layers, how many parameters, and rows for new tokens."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError

from ..core.config import Settings
from ..core.errors import UserError
from ..core.seeds import seed_for
from .quantize import count_weights


def add_lora(model, *, r: int, alpha: float, dropout: float, targets: list[str], seed: int,
             new_tokens: list[int] | None = None, dora: bool = False, rslora: bool = False):
    """Wrap a causal model with fresh float32 adapters; `new_tokens` are embedding rows to be trained too.

    W' = W + s B A, with A random and B zero, so the first forward is the base's; s = alpha / r (Hu et al. 2021, eq. 3),
    or alpha / sqrt(r) (rsLoRA, Kalajdzievski 2023, sec. 3). dora: W' = m (W + s B A) / |W + s B A|, with the length m
    of each row trained too (DoRA, Liu et al. 2024, eq. 5). A target that matches no layer is a UserError with the
    nearest names.
    """
    chosen = "all-linear" if targets == ["all-linear"] else targets
    if chosen != "all-linear":
        _check_targets(model, targets)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, task_type="CAUSAL_LM",
                        use_dora=dora, use_rslora=rslora,
                        trainable_token_indices=_token_rows(model, new_tokens))
    torch.manual_seed(seed_for(seed, "adapters"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's advice about fan_in_fan_out, which it sets itself
        try:
            wrapped = get_peft_model(model, config, autocast_adapter_dtype=True)
        except ValueError as e:
            raise UserError("PEFT cannot place the adapters", where="lora_target_modules", found=str(e)) from None
    return _widened(wrapped)


def _token_rows(model, new_tokens: list[int] | None) -> list[int] | dict[str, list[int]] | None:
    """What PEFT is told of new tokens: the input rows, and where the output has rows of its own, those too."""
    if not new_tokens:
        return None
    into, out = model.get_input_embeddings(), model.get_output_embeddings()
    if out is None or out.weight is into.weight:
        return new_tokens
    names = {id(m): n.rsplit(".", 1)[-1] for n, m in model.named_modules()}
    return {names[id(into)]: new_tokens, names[id(out)]: new_tokens}


def _widened(model):
    """Every trained weight in float32 at least; PEFT leaves rows of new tokens in the base's type."""
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
    return model


def continued_shape(settings: Settings, folder: Path) -> dict[str, Any]:
    """The keys that shape an adapter which is trained further; one that was set otherwise is a UserError."""
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise UserError("only a LoRA adapter can be trained further", where=str(folder),
                        found=str(config.peft_type).rpartition(".")[2],
                        fix="name its base as model for a fresh adapter")
    targets = config.target_modules or []
    targets = [targets] if isinstance(targets, str) else sorted({name.rsplit(".", 1)[-1] for name in targets})
    shape = {"lora_r": config.r, "lora_alpha": float(config.lora_alpha), "lora_dropout": config.lora_dropout,
             "lora_target_modules": targets, "use_rslora": config.use_rslora, "use_dora": config.use_dora}
    for key, is_so in shape.items():
        asked = getattr(settings, key)
        if key in settings.model_fields_set and (sorted(asked) if isinstance(asked, list) else asked) != is_so:
            raise UserError("the adapter that is continued has another shape", where=key, found=_shown(asked),
                            expected=_shown(is_so),
                            fix=f"drop {key}, or name its base as model for a fresh adapter")
    return shape


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, list) else f"{value:g}"


def attach_adapter(model, folder: Path, *, trainable: bool):
    """The base with an existing adapter on it, in float32, trainable or for inference; safetensors only."""
    return _widened(_fitting(folder, lambda: PeftModel.from_pretrained(model, str(folder), is_trainable=trainable,
                                                                       autocast_adapter_dtype=True)))


def attach_beside(model, folder: Path, name: str):
    """A frozen adapter of this name beside those that a PEFT model has, not switched on -> its PEFT config."""
    _fitting(folder, lambda: model.load_adapter(str(folder), name, torch_device=str(model.device)))
    return model.peft_config[name]


def attach_scorer(model, folder: Path, name: str) -> torch.Tensor:
    """The frozen adapter of a reward model beside those that a PEFT model has -> its score head's weight [1, D]."""
    from safetensors.torch import load_file

    config = LoraConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save, config.inference_mode = "CAUSAL_LM", None, True
    tensors = load_file(folder / "adapter_model.safetensors")
    heads = [tensors.pop(key) for key in list(tensors) if key.endswith(".score.weight")]
    if len(heads) != 1:
        raise UserError("the reward model has no score head", where=str(folder), found=f"{len(heads)} score heads",
                        expected="one, score.weight", fix="train it with `posttrain reward`")

    def load():
        model.add_adapter(name, config)
        found = set_peft_model_state_dict(model, tensors, adapter_name=name)
        if found.unexpected_keys:
            raise ValueError(f"no layer takes {found.unexpected_keys[0]}")
        return model
    _fitting(folder, load)
    return heads[0]


def _fitting(folder: Path, load: Callable[[], Any]) -> Any:
    """What `load` makes of an adapter's folder; what does not fit its base is a UserError."""
    if not (folder / "adapter_model.safetensors").is_file():
        pickled = (folder / "adapter_model.bin").is_file()
        raise UserError("the adapter has pickled weights only, and pickles can run code" if pickled else
                        "the adapter has no weights", where=str(folder), expected="adapter_model.safetensors",
                        fix="convert it once in a place you trust: load it with PEFT, then save_pretrained(FOLDER)"
                        if pickled else "copy or fetch the adapter again")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            loaded = load()
        except (ValueError, RuntimeError, TypeError, KeyError, SafetensorError) as e:
            raise _misfit(folder, str(e).strip()) from None
    lacking = [str(w.message) for w in said if "missing adapter keys" in str(w.message)] or [
        *(getattr(loaded, "missing_keys", None) or [])]
    if lacking:
        raise _misfit(folder, lacking[0])
    return loaded


def _misfit(folder: Path, found: str) -> UserError:
    return UserError("the adapter does not fit its base", where=str(folder), found=found[:300],
                     expected="the weights of every layer that its adapter_config.json names",
                     fix="check base_model_name_or_path there, and that the adapter was copied whole")


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
    """(trainable, total) parameters, tied ones counted once, packed ones by the weights they stand for."""
    total = sum(count_weights(p) for p in model.parameters())
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
