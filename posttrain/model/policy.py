"""The model to be trained, or to answer: base, adapter, new tokens, types, put together in one place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..core.config import Settings, make_settings, read_config
from ..core.errors import UserError
from .adapters import add_lora, attach_adapter, grow_embeddings
from .checkpoint import load_checkpoint, verify
from .device import choose_device, choose_dtype
from .halves import whole
from .heads import PREFIX, read_heads
from .identity import BaseFacts, check_base, read_base
from .load import base_dtype, from_scratch, load_causal, table_of_positions
from .memory import map_large_blocks
from .quantize import check_quantized, count_weights, is_packed, packed_layers, settle_packed, unpack
from .resolve import ModelRef
from .roles import of_another_role
from .shard import shards


@dataclass(slots=True)
class Policy:
    """A built model: its compute type and device, the type its base is stored in, lines to be printed, scalar heads,
    and what an adapter on it must know of its base."""

    model: torch.nn.Module
    ref: ModelRef | None
    dtype: torch.dtype
    device: torch.device
    stored: torch.dtype
    notes: list[str]
    heads: torch.nn.ModuleDict = field(default_factory=torch.nn.ModuleDict)
    base: BaseFacts = BaseFacts()

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Those of the model, then those of its heads."""
        yield from self.model.named_parameters()
        yield from self.heads.named_parameters(PREFIX.rstrip("."))


def build_policy(settings: Settings, ref: ModelRef | None, *, vocab_size: int, new_tokens: list[int],
                 special: dict[str, int | None], unpacked: bool = False) -> Policy:
    """The trainable model of a run, in train mode.

    full: every weight trainable, held in float32 at first (the optimizer keeps those as masters and lowers the model's
    copy). lora: the base frozen in the compute type, float32 adapters on top; a base that is itself an adapter has
    that adapter continued. qlora: the same on a base whose linear layers hold four bits a weight (`unpacked`: on the
    whole weights that those stand for). `ref` is None for a model from scratch (`model_config`). `new_tokens` are the
    ids that the chat template added to the vocabulary of `vocab_size`.
    """
    device, _ = choose_device(settings.device)
    dtype, _ = choose_dtype(settings.dtype, device)
    held = torch.promote_types(dtype, torch.float32) if settings.method == "full" else dtype
    base, notes, home = BaseFacts(), [], device
    if shards(settings):  # layer by layer onto the device, so read as it is stored: one copy for a machine's processes
        home = torch.device("cpu")
        held = held if ref is None or ref.adapter else base_dtype(ref.base, settings.trust_remote_code)
    if ref is None:
        model = from_scratch(settings.architecture, vocab_size=vocab_size, special=special, seed=settings.seed,
                             dtype=held, device=home)
        stored = dtype
    else:
        known = _check_method(settings, ref)
        four_bit = settings.method == "qlora" or bool(known and known.four_bit)
        model = _load_base(ref, held, home, settings.trust_remote_code, four_bit=four_bit,
                           unpacked=unpacked or settings.method == "full")
        stored = base_dtype(ref.base, settings.trust_remote_code)
        base = BaseFacts(check_base(ref, known, str(ref.adapter)), four_bit)
        if settings.method == "qlora" and not unpacked:
            check_quantized(model, ref.base)
            notes.append(_told(model, dtype))
        elif settings.method == "lora" and packed_layers(model):
            raise UserError("the base is quantized: adapters on it are qlora", where="method", found="lora",
                            fix="set method: qlora, or name the unquantized model")
    places = table_of_positions(model)
    if places is not None and settings.max_length > places:
        raise UserError("a row may be longer than the model's positions", where="max_length",
                        found=f"{settings.max_length} tokens", expected=f"at most {places}",
                        fix=f"set max_length: {places}")
    model.get_input_embeddings().padding_idx = None  # torch would never train that row, and pad is often eos
    if grown := grow_embeddings(model, vocab_size):
        notes.append(f"embeddings grew by {len(grown)} to {vocab_size:,} rows for the chat template's tokens")
    if settings.adapts:
        model = _lora(model, settings, ref, new_tokens, notes)
    elif ref is not None and ref.adapter:
        model = attach_adapter(model, ref.adapter, trainable=False).merge_and_unload()
        notes.append(f"the adapter {ref.adapter} was merged into its base before full fine-tuning")
    if settings.method == "full":
        model.requires_grad_(True)
    if settings.gradient_checkpointing:
        recompute_activations(model)
    map_large_blocks(settings.gradient_checkpointing and bool(packed_layers(model)) and device.type == "cpu")
    model.train()
    return Policy(model, ref, dtype, device, stored, notes, base=base)


def recompute_activations(model) -> None:
    """Keep only each layer's input from now on (Chen et al. 2016): gradient checkpointing."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(causal, "activation_checkpointing_enable"):
        causal.activation_checkpointing_enable({"use_reentrant": False})
    else:  # its name before transformers 5.2x
        causal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def _check_method(settings: Settings, ref: ModelRef) -> BaseFacts | None:
    """What a continued adapter knows of its base, whose packing the method must keep: the adapter was fitted to it."""
    known = read_base(ref)
    if known and settings.adapts and known.four_bit != (settings.method == "qlora"):
        was = "qlora" if known.four_bit else "lora"
        raise UserError("an adapter is continued on the base that it was trained on", where="method",
                        found=settings.method, expected=f"{was}, as {ref.adapter} was trained",
                        fix=f"set method: {was}, or merge it first (`posttrain merge`) and name the merged folder")
    return known


def _load_base(ref: ModelRef, dtype: torch.dtype, device: torch.device, trust_remote_code: bool, *, four_bit: bool,
               unpacked: bool):
    """The base of a model, everything but packed weights in `dtype`; `unpacked`: packed ones made whole too."""
    model = load_causal(ref, dtype=dtype, device=device, trust_remote_code=trust_remote_code, four_bit=four_bit)
    if packed_layers(model):
        model = unpack(model) if unpacked else model
        lower(model, dtype, kept_wide(model))
        settle_packed(model, dtype)
    return model


def _told(model, dtype: torch.dtype) -> str:
    packed = [layer.weight for _, layer in packed_layers(model)]
    inside, total = sum(count_weights(p) for p in packed), sum(count_weights(p) for p in model.parameters())
    return (f"qlora: {inside:,} of {total:,} weights in 4 bits (NF4, {len(packed)} layers), the others in "
            f"{str(dtype).removeprefix('torch.')}")


def _lora(model, settings: Settings, ref: ModelRef | None, new_tokens: list[int], notes: list[str]):
    if ref is None:
        raise UserError("a model from scratch has no weights for adapters to stand on", where="method",
                        found=settings.method, fix="set method: full")
    if ref.adapter:
        if new_tokens:
            raise UserError("an adapter that is continued cannot learn new tokens", where="chat_template",
                            found=f"{len(new_tokens)} tokens of {settings.chat_template} are not in its vocabulary",
                            fix="keep its own template (chat_template: auto), or set method: full")
        notes.append(f"the adapter {ref.adapter} is continued")
        return attach_adapter(model, ref.adapter, trainable=True)
    return add_lora(model, r=settings.lora_r, alpha=settings.lora_alpha, dropout=settings.lora_dropout,
                    targets=settings.lora_target_modules, seed=settings.seed, new_tokens=new_tokens,
                    dora=settings.use_dora, rslora=settings.use_rslora)


def open_model(ref: ModelRef, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False,
               unpacked: bool = False) -> Policy:
    """A model that answers, in eval mode: whole weights, base and adapter, or a checkpoint of a run.

    An adapter trained on packed weights stands on packed weights, or, `unpacked`, on the whole ones they stand for.
    """
    where, _ = choose_device(device)
    kind, _ = choose_dtype(dtype, where)
    if ref.checkpoint:
        return _from_checkpoint(ref, kind, where, unpacked)
    known = read_base(ref)
    model = _load_base(ref, kind, where, trust_remote_code, four_bit=bool(known and known.four_bit), unpacked=unpacked)
    facts = BaseFacts()
    if ref.adapter:
        facts = BaseFacts(check_base(ref, known, str(ref.adapter)), bool(known and known.four_bit))
        rows = _vocabulary(ref.tokenizer, trust_remote_code)
        if rows > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)
        model = attach_adapter(model, ref.adapter, trainable=False)
        lower(model, kind, kept_wide(model))
    return Policy(model.eval(), ref, kind, where, base_dtype(ref.base, trust_remote_code), [], base=facts)


def _vocabulary(tokenizer: str, trust_remote_code: bool) -> int:
    from transformers import AutoTokenizer

    return len(AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code))


def _from_checkpoint(ref: ModelRef, dtype: torch.dtype, device: torch.device, unpacked: bool) -> Policy:
    if wrong := verify(ref.checkpoint):
        raise UserError("the checkpoint is damaged", where=str(ref.checkpoint), found=wrong,
                        fix="name an older checkpoint, or the run")
    files, state = load_checkpoint(ref.checkpoint)
    values = read_config(ref.run / "config.yaml") | {"device": str(device), "dtype": "float32"}
    if values.get("model_config"):  # the run's own copy, wherever the run lies now
        values["model_config"] = str(ref.run / "architecture.yaml")
    settings = make_settings(values)
    under = ModelRef(ref.name, ref.base, ref.tokenizer, ref.adapter) if state["base"] else None
    policy = build_policy(settings, under, vocab_size=state["vocab_size"], new_tokens=state["new_tokens"], special={},
                          unpacked=unpacked)
    check_same_base(policy, state, ref.checkpoint)
    width = policy.model.config.get_text_config().hidden_size
    policy.heads = read_heads(files["weights"], width, str(ref.checkpoint)).to(device)
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        for name in (n for n in files["weights"] if not of_another_role(n)):
            parameters[name].copy_(whole(files, name, parameters[name].shape))
    lower(policy.model, dtype, kept_wide(policy.model))
    settle_packed(policy.model, dtype)
    return Policy(policy.model.eval(), ref, dtype, device, policy.stored, [], policy.heads, policy.base)


def check_same_base(policy: Policy, state: dict, checkpoint: Path) -> None:
    """Stop where a checkpoint of adapters would go on another base than the one it was written on."""
    if policy.ref is not None and hasattr(policy.model, "peft_config"):
        check_base(policy.ref, BaseFacts(state.get("base_hash", "")), str(checkpoint))


def lower(model, dtype: torch.dtype, keep: tuple[str, ...] = ()) -> None:
    """Parameters in `dtype`; packed ones, buffers (rotary frequencies) and names that hold one of `keep` as they are.
    """
    for name, p in model.named_parameters():
        if not is_packed(p) and not any(k in name for k in keep):
            p.data = p.data.to(dtype)


def kept_wide(model) -> tuple[str, ...]:
    """Names of modules that the architecture wants in float32 whatever the compute type."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    names = set()
    for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
        names |= set(getattr(causal, attribute, None) or ())
    return tuple(sorted(names))
