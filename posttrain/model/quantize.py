"""Four bits a weight: NF4 with double quantization through bitsandbytes, and the way back."""

from __future__ import annotations

from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ..core.errors import UserError
from ..core.extras import need_extra

STORED = (torch.float16, torch.bfloat16, torch.float32)  # types that weights are quantized from as they are


def need_bitsandbytes(where: str) -> None:
    """Stop with the command that installs it where weights of 4 bits cannot be read or made."""
    need_extra("bitsandbytes", "qlora", where=where, found="weights of 4 bits")


def nf4(stored: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is told: NF4, double quantization (Dettmers et al. 2023, sec. 3), from the stored type.

    The codes are made from the weights as the files hold them, never from the compute type: the same files give the
    same base in training, in chat, and when an adapter is merged (test_quantize.py::test_the_codes_are_the_files').
    """
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
        "dtype": stored if stored in STORED else torch.float32}


def packed_layers(model) -> list[tuple[str, torch.nn.Module]]:
    """(name, layer) of the linear layers that hold four bits a weight."""
    if not getattr(model, "is_loaded_in_4bit", False):
        return []
    from bitsandbytes.nn import Linear4bit

    return [(n, m) for n, m in model.named_modules() if isinstance(m, Linear4bit)]


def is_packed(p: torch.nn.Parameter) -> bool:
    """Whether a parameter holds codes of several weights a byte, which no cast may touch."""
    return getattr(p, "quant_state", None) is not None


def settle_packed(model, dtype: torch.dtype) -> None:
    """Let packed layers compute in `dtype`, forward and backward alike, and stay as they are in evaluation.

    Where a CPU has AVX-512 BF16, bitsandbytes re-packs a layer at its first forward in evaluation mode, for good, and
    its backward goes on reading the old layout: gradients are then wrong by half their size. Told that the CPU has no
    such products, it leaves them (test_quantize.py::test_an_evaluation_changes_no_gradient).
    """
    layers = packed_layers(model)
    if layers and dtype not in (torch.bfloat16, torch.float32):
        raise UserError("weights of 4 bits compute in bfloat16 or float32", where="dtype",
                        found=str(dtype).removeprefix("torch."), fix="drop dtype, or set dtype: float32")
    for _, layer in layers:
        layer.support_avx512bf16_for_cpu = False
        layer.compute_dtype, layer.compute_type_is_set = dtype, True
        layer.weight.quant_state.dtype = dtype  # what the backward pass and DoRA's norms are computed from


def leave_files(model) -> None:
    """Copy the weights that stay whole: as views they would keep all of the files in memory, packed or not."""
    for p in model.parameters():
        if not is_packed(p):
            p.data = p.data.clone()


def check_quantized(model, where: str) -> None:
    """Stop where four bits were asked for and no layer took them."""
    if not packed_layers(model):
        raise UserError("this architecture has no linear layers to quantize", where=where, found=type(model).__name__,
                        expected="torch.nn.Linear layers besides the output head",
                        fix="set method: lora, or method: full")


def unpack(model):
    """The same model with whole weights in place of codes: W = code · (absmax in double quantization), in float32.

    In and out: a base without adapters. Layers that transformers turned round to pack them are turned back.
    """
    from bitsandbytes.functional import dequantize_4bit

    for name, layer in packed_layers(model):
        state = layer.weight.quant_state
        state.dtype = torch.float32
        whole = dequantize_4bit(layer.weight.data, state)
        with torch.device("meta"):
            if getattr(layer, "source_cls", None) is Conv1D:
                made, whole = Conv1D(layer.out_features, layer.in_features), whole.T.contiguous()
            else:
                made = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        made.weight = torch.nn.Parameter(whole, requires_grad=False)
        if layer.bias is not None:
            made.bias = torch.nn.Parameter(layer.bias.data.float(), requires_grad=False)
        model.set_submodule(name, made)
    if hasattr(model, "hf_quantizer"):
        model.hf_quantizer.remove_quantization_config(model)
    model.is_loaded_in_4bit = False
    return model


def count_weights(p: torch.nn.Parameter) -> int:
    """Weights that a parameter stands for: a packed one holds fewer numbers than weights."""
    return p.quant_state.shape.numel() if is_packed(p) else p.numel()
