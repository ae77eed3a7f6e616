"""The result: a folder that transformers or PEFT loads with no code of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from .checkpoint import flush, flush_folder, writing
from .heads import PREFIX
from .identity import write_base
from .policy import Policy
from .reward import add_score, pad_apart, pad_beside_stops, save_classifier

SAMPLING = ("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")
SCORE = f"{PREFIX}score.weight"

Masters = dict[str, Callable[[], torch.Tensor]]


def export_model(folder: Path, policy: Policy, masters: Masters, spec: Any, card: str) -> Path:
    """Write `folder`: safetensors, tokenizer with its template, generation_config with the stop tokens, card.

    full: every weight in the type the base is stored in. else a PEFT folder with float32 adapters, which
    names its base and knows its hash. A policy with a score head becomes a reward model: a folder or an adapter for
    sequence classification.
    `masters` make the trained weights by parameter name, one at a time: all of them in float32 would be the largest
    thing in memory. Written beside, flushed and renamed, so a folder of this name is whole.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder, partial):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if hasattr(policy.model, "peft_config"):
            _adapter(partial, policy, masters)
        else:
            _whole(partial, policy, masters, spec)
        spec.save(partial)
        if "score" in policy.heads:
            pad_apart(partial, spec)
        else:
            generation_config(policy.model, spec).save_pretrained(partial)
        (partial / "README.md").write_text(card, "utf-8")
        for path in partial.rglob("*"):
            flush_folder(path) if path.is_dir() else flush(path)
        flush_folder(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        flush_folder(folder.parent)
    return folder


def _whole(folder: Path, policy: Policy, masters: Masters, spec: Any) -> None:
    model = policy.model
    weights = {n: (masters[n]() if n in masters else p.detach()).to(policy.stored) for n, p in model.named_parameters()}
    buffers = {n: b for n, b in model.state_dict().items() if n not in weights and n in dict(model.named_buffers())}
    model.config.dtype = policy.stored
    if "score" in policy.heads:
        save_classifier(folder, model, weights | buffers, masters[SCORE](), pad_beside_stops(spec))
    else:
        model.save_pretrained(folder, state_dict=weights | buffers)


def _adapter(folder: Path, policy: Policy, masters: Masters) -> None:
    model = policy.model
    for config in model.peft_config.values():
        base = Path(policy.ref.base)
        config.base_model_name_or_path = str(base.resolve()) if base.exists() else policy.ref.base
        if isinstance(config.target_modules, set):
            config.target_modules = sorted(config.target_modules)  # the same run gives the same bytes
    held = {}
    for name, p in model.named_parameters():
        if name in masters:
            held[name], p.data = p.data, masters[name]()
    try:
        model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    finally:
        for name, p in model.named_parameters():
            if name in held:
                p.data = held[name]
    if "score" in policy.heads:
        add_score(folder, masters[SCORE]())
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's own card; ours follows
    write_base(folder, policy.base)


def generation_config(model, spec: Any) -> GenerationConfig:
    """The base's generation settings with the stop set that training used; pad is never read as an end.

    Settings that contradict each other, which transformers reads but refuses to write, are left to its defaults.
    """
    config = GenerationConfig.from_dict((getattr(model, "generation_config", None) or GenerationConfig()).to_dict())
    stops = list(spec.stop_ids)
    config.eos_token_id = stops[0] if len(stops) == 1 else stops
    if config.bos_token_id is None:
        config.bos_token_id = spec.id("bos")
    pad = spec.id("pad")
    config.pad_token_id = pad if pad is not None else stops[0]
    if not config.do_sample:  # a greedy config with sampling values is refused by transformers
        for name in SAMPLING:
            setattr(config, name, None)
    try:
        config.validate(strict=True)
    except ValueError:
        config = GenerationConfig(bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id,
                                  pad_token_id=config.pad_token_id)
    return config
