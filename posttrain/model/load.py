"""Models in: safetensors only, no code of theirs unless the user says so."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as hf_logging

from ..core.errors import UserError
from ..core.seeds import seed_for
from .memory import apart, forget_peak
from .quantize import leave_files, need_bitsandbytes, nf4
from .resolve import ModelRef, gives_scores

# What transformers raises of a config.json that it cannot read, or whose values do not fit each other.
NO_CONFIG = (OSError, ValueError, KeyError, TypeError, AttributeError, StrictDataclassError)
FOUR_BIT = ("nf4", "fp4")
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "consolidated.00.pth")


def load_causal(ref: ModelRef, *, dtype: torch.dtype, device: torch.device | str = "cpu",
                trust_remote_code: bool = False, four_bit: bool = False):
    """The whole weights behind a reference, as a transformers causal model in `dtype` on `device`, in eval mode.

    A weight that the files lack, or hold in another shape, is an error: transformers would make one up
    (test_load.py::test_weights_are_never_made_up). `four_bit`: linear layers as NF4, the rest in the stored type.
    """
    check_weights(ref.base)
    if gives_scores(ref):
        raise UserError("this is a reward model: it gives scores, not words", where=ref.name,
                        expected="a language model",
                        fix="see its scores with `posttrain score`, or name the model that it was trained from")
    quiet_transformers()
    how: dict[str, Any] = {"dtype": dtype}
    packed = _packed_as(ref.base, trust_remote_code)
    if four_bit or packed in FOUR_BIT:
        need_bitsandbytes(ref.base)
        how["device_map"] = {"": device}  # a layer is packed where it will stay
        if not packed:
            how |= nf4(base_dtype(ref.base, trust_remote_code))
    if four_bit and packed and packed not in FOUR_BIT:
        raise UserError("the base is quantized already, in another way", where=ref.base, found=packed,
                        expected="whole weights, or those of bitsandbytes in 4 bits",
                        fix="name the unquantized model")
    packing = "quantization_config" in how
    try:
        with apart() if packing else contextlib.nullcontext():
            model, found = AutoModelForCausalLM.from_pretrained(
                ref.base, trust_remote_code=trust_remote_code, use_safetensors=True, low_cpu_mem_usage=True,
                output_loading_info=True, ignore_mismatched_sizes=True, **how)
    except (OSError, SafetensorError) as e:
        raise _load_error(ref, e) from None
    except ValueError as e:
        if "trust_remote_code" in str(e):
            raise _own_code(ref) from None
        raise UserError("transformers cannot build this model", where=ref.base, found=str(e).split("\n")[0],
                        fix="check model_type and the shapes in its config.json") from None
    except ImportError as e:
        raise UserError("the model needs a package that is not installed", where=ref.base,
                        found=str(e).strip().split("\n")[0], fix="install it, or name the unquantized model") from None
    _check_complete(ref, found)
    if packing:
        leave_files(model)
        forget_peak()  # pages of the files, which the system takes back as it needs them, are no memory of the run
    return (model if "device_map" in how else model.to(device)).eval()


def _packed_as(base: str, trust_remote_code: bool) -> str:
    """How the files hold quantized weights: nf4, fp4, 8-bit, or another tool's name; '' for whole ones."""
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    except NO_CONFIG:  # what is wrong with it is said when the model is loaded
        return ""
    how = getattr(config, "quantization_config", None) or {}
    how = how if isinstance(how, dict) else how.to_dict()
    if how.get("quant_method") != "bitsandbytes":
        return str(how.get("quant_method", "quantized")) if how else ""
    return how.get("bnb_4bit_quant_type", "fp4") if how.get("load_in_4bit") else "bitsandbytes in 8 bits"


def _check_complete(ref: ModelRef, found: dict[str, Any]) -> None:
    """Every weight of the architecture came from the files, in its own shape."""
    if wrong := sorted(found["mismatched_keys"]):
        name, in_file, wanted = wrong[0]
        raise UserError("the weights have other shapes than the config says", where=ref.base,
                        found=f"{name} {list(in_file)}{_more(wrong)}", expected=str(list(wanted)),
                        fix="use the config.json that belongs to these weights")
    if missing := sorted(found["missing_keys"]):
        raise UserError("the model's files lack weights that its architecture needs", where=ref.base,
                        found=f"no {missing[0]}{_more(missing)}",
                        fix="fetch all of its files again, or use the config.json that belongs to them")


def _more(names: list) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def check_weights(base: str) -> None:
    """A local folder must have its weights as safetensors; pickled ones alone are refused."""
    folder = Path(base)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickled = [n for n in PICKLED if (folder / n).exists()] or [p.name for p in folder.glob("*.bin")]
    if pickled:
        raise UserError("the model has pickled weights only, and pickles can run code", where=base,
                        found=", ".join(pickled), expected="model.safetensors",
                        fix="convert once in a place you trust: AutoModelForCausalLM.from_pretrained(FOLDER)"
                            ".save_pretrained(FOLDER)")
    raise UserError("the model folder has no weights", where=base, expected="model.safetensors")


def _load_error(ref: ModelRef, error: Exception) -> UserError:
    if ref.is_hub:
        return UserError("the model could not be fetched from the hub", where=ref.base, found=str(error).split("\n")[0],
                         fix="check the name and the network, or name a local folder")
    return UserError("the model folder cannot be read", where=ref.base, found=str(error).split("\n")[0],
                     fix="a file of it is damaged or missing: copy or fetch it again")


def from_scratch(architecture: str | Path, *, vocab_size: int, special: dict[str, int | None], seed: int,
                 dtype: torch.dtype, device: torch.device | str = "cpu"):
    """A randomly initialised model of the shape in a YAML file of Hugging Face config keys (`model_type` first).

    The embedding has `vocab_size` rows unless the file asks for more; `special` gives bos and eos ids.
    """
    config = read_architecture(architecture)
    model_type = config.pop("model_type")
    config["vocab_size"] = max(int(config.get("vocab_size", 0)), vocab_size)
    config.update({k: v for k, v in special.items() if v is not None})
    torch.manual_seed(seed_for(seed, "weights"))
    try:
        made = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **config), dtype=torch.float32)
    except (ValueError, TypeError, RuntimeError) as e:
        raise UserError("no model can be built from these keys", where=str(architecture), found=str(e).split("\n")[0]
                        ) from None
    return made.to(device=device, dtype=dtype).eval()


def _own_code(ref: ModelRef) -> UserError:
    return UserError("this model brings Python code of its own", where=ref.base,
                     fix="read that code, then set trust_remote_code: true")


def config_of(settings, ref: ModelRef | None, vocab_size: int):
    """The transformers config of a run's model: that of its base, or of an architecture file."""
    if ref is not None:
        try:
            return AutoConfig.from_pretrained(ref.base, trust_remote_code=settings.trust_remote_code)
        except NO_CONFIG as e:
            if "trust_remote_code" in str(e):
                raise _own_code(ref) from None
            raise UserError("no config of a model can be read here", where=ref.base,
                            found=str(e).strip().split("\n")[0 if isinstance(e, OSError) else -1].strip(),
                            expected="a config.json with a model_type that transformers knows") from None
    config = read_architecture(settings.architecture)
    config["vocab_size"] = max(int(config.get("vocab_size", 0)), vocab_size)
    return AutoConfig.for_model(config.pop("model_type"), **config)


def read_architecture(path: str | Path) -> dict[str, Any]:
    """The config keys of a from-scratch model; the file must exist and name a model_type that transformers knows."""
    file = Path(path)
    if not file.is_file():
        raise UserError("the architecture file does not exist", where=str(path), fix="name a YAML file of config keys")
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
    except yaml.YAMLError as e:
        raise UserError("the architecture file is not valid YAML", where=str(path), found=str(e)) from None
    if not isinstance(config, dict) or "model_type" not in config:
        raise UserError("the architecture file names no model_type", where=str(path),
                        expected="for example `model_type: qwen3`, then that config's keys")
    return config


def base_dtype(base: str, trust_remote_code: bool = False) -> torch.dtype:
    """The type a base's weights are stored in, from its config (float32 where it does not say)."""
    config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    return config.get_text_config().dtype or config.dtype or torch.float32


def table_of_positions(model) -> int | None:
    """How many positions a model has where they are rows of a table (GPT-2); None where they are computed (rotary)."""
    config = model.config.get_text_config(decoder=True)
    computed = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
    return None if computed else getattr(config, "max_position_embeddings", None)


def quiet_transformers() -> None:
    """No progress bars or advice of transformers between our own lines; errors still come as exceptions."""
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
