"""`posttrain plan MODEL`: what a run will hold and cost, from a config.json alone."""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain.app.screen import make_console, print_json
from posttrain.core.choices import choices
from posttrain.core.errors import UserError

# Share of a large matrix product's speed that a whole update is taken to reach: a rule of thumb, not measured.
UTILISATION = 0.3


def main(command) -> int:
    """Print the plan, as tables or as JSON; exit 0 whether it fits or not."""
    settings = command.settings.model_copy(update={"model": command.words[0]})
    filled = {key: value for key, value, _ in choices(settings)}
    found = make_plan(settings.model_copy(update=filled), has_data="data" in command.given,
                      memory=command.options["memory"])
    if command.options["json"]:
        print_json(found)
    else:
        _print(make_console(), found)
    return 0


def make_plan(settings, *, has_data: bool, memory: float | None) -> dict[str, Any]:
    """The plan as plain values. `memory`: of a GPU, in GiB, instead of this machine."""
    import torch

    from posttrain.model.device import choose_device, choose_dtype
    from posttrain.model.memory import available
    from posttrain.train.objectives import make_objective
    from posttrain.train.plan import METHODS, Planner, told
    from posttrain.train.plan_ranks import spreads
    from posttrain.train.rehearsal import checkpoints_kept, spare

    if memory is None:
        device, _ = choose_device(settings.device)
        dtype, free = choose_dtype(settings.dtype, device)[0], available(device)
    else:
        if settings.device == "cpu":
            raise UserError("a plan is for this machine's processor or for a GPU", where="--memory, --device cpu",
                            fix="drop one of them")
        device, free = torch.device("cuda"), int(memory * 2**30)
        dtype = torch.bfloat16 if settings.dtype == "auto" else getattr(torch, settings.dtype)
    settings, config = read_config_of(settings)
    updates, tokens, most = _work(settings, has_data)
    planner = Planner(config, settings, dtype, device.type == "cpu", frozenset(make_objective(settings).needs), most)
    if settings.pack_tokens == "auto":
        tokens_of = planner.largest_pack(settings.method, settings.gradient_checkpointing, spare(free))
        planner.settings = settings = settings.model_copy(update={"pack_tokens": tokens_of or settings.max_length})
    pack, recompute = settings.pack_tokens, settings.gradient_checkpointing
    methods = {m: {name: planner.run_of(m, pack, on) for name, on in
                   (("plain", False), ("gradient_checkpointing", True))} for m in METHODS}
    chosen = methods[settings.method]["gradient_checkpointing" if recompute else "plain"]
    fits = chosen.peak <= free
    change = None if fits else planner.change(free)
    flops = planner.flops(settings.method, recompute)
    checkpoint, model = planner.disk(settings.method, (config.get_text_config().dtype or dtype).itemsize)
    kept = checkpoints_kept(settings, updates)
    return {
        "model": settings.model, "method": settings.method, "device": str(device),
        "dtype": str(dtype).removeprefix("torch."), "peak_bytes": chosen.peak, "parts": chosen.parts,
        "available_bytes": free, "fits": fits, "pack_tokens": pack, "planned_tokens": min(pack, most or pack),
        "gradient_checkpointing": recompute, "traced": chosen.exact,
        "largest_pack_tokens": planner.largest_pack(settings.method, recompute, free),
        "change": change, "fix": None if fits else told(change),
        "parameters": planner.total, "trained_parameters": planner.trained(settings.method),
        "methods": {m: {name: {"peak_bytes": s.peak, "parts": s.parts, "fits": s.peak <= free,
                               "trained_parameters": planner.trained(m)} for name, s in kinds.items()}
                    for m, kinds in methods.items()},
        "processes": {} if settings.processes == 1 else {m: [asdict(s) for s in rows] for m, rows in spreads(
            planner, settings.processes, pack, recompute).items()},
        "flops_per_token": flops, "updates": updates, "tokens": tokens,
        "seconds": round(flops * tokens / _speed(device, dtype)) if tokens and memory is None else None,
        "disk": {"checkpoint_bytes": checkpoint, "checkpoints": kept, "model_bytes": model,
                 "bytes": checkpoint * kept + model,
                 "free_bytes": shutil.disk_usage(Path.cwd()).free},
    }


def read_config_of(settings):
    """(settings, transformers config) of MODEL: a folder or file with a config.json, a run, an adapter, a hub id.

    An adapter is continued, so it says its own shape, and on which kind of base it stands.
    """
    from posttrain.model.adapters import continued_shape
    from posttrain.model.identity import read_base
    from posttrain.model.load import config_of, quiet_transformers
    from posttrain.model.resolve import ModelRef, resolve_model

    quiet_transformers()
    path = Path(settings.model).expanduser()
    ref = ModelRef(str(path), str(path), "") if path.is_file() else resolve_model(settings.model)
    if ref.adapter and settings.adapts:
        update = continued_shape(settings, ref.adapter)
        if (known := read_base(ref)) and "method" not in settings.model_fields_set:
            update["method"] = "qlora" if known.four_bit else "lora"
        settings = settings.model_copy(update=update)
    return settings, config_of(settings, ref, 0)


def _work(settings, has_data: bool) -> tuple[int | None, int | None, int | None]:
    """(updates, tokens of the whole run, most tokens of an update); None where the data does not say."""
    if not has_data:
        return settings.max_steps, None, None
    from posttrain.app.data import tokenizer_of
    from posttrain.data.render import rendering
    from posttrain.data.updates import Updates

    work = Updates(settings.model_copy(update={"bad_rows": "skip"}))
    updates = work.order.total
    path = Path(settings.tokenizer or settings.model)
    if not settings.tokenizer and (path.is_file() or path.is_dir() and not any(path.glob("token*"))):
        return updates, None, None  # no tokenizer here: rows have no length
    head = work.head(rendering(settings, tokenizer_of(settings)))
    if len(head.updates) >= updates:
        return updates, sum(head.updates), max(head.updates)
    mean = sum(head.updates) / max(1, len(head.updates))
    return updates, round(mean * updates), None


def _speed(device, dtype) -> float:
    """Floating-point operations a second that an update may reach: a share of what a matrix product does here."""
    import torch

    size = 1024 if device.type == "cpu" else 4096
    a = torch.ones(size, size, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return UTILISATION * 2 * size**3 / best


def _print(console, found: dict[str, Any]) -> None:
    from rich.table import Column, Table

    from posttrain.model.memory import size
    from posttrain.train.plan import MOST

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    say(f"{found['model']}: {found['parameters']:,} parameters; {found['dtype']} on {found['device']}, "
        f"{size(found['available_bytes'])} free; packs of {found['planned_tokens']:,} tokens")
    table = Table(Column(no_wrap=True), *list(found["parts"]), "at most at once", "fits", padding=(0, 0))
    for method, kinds in found["methods"].items():
        for kind, sizes in kinds.items():
            name = method if kind == "plain" else f"{method}, recomputed"
            table.add_row(name, *(size(n) for n in sizes["parts"].values()), size(sizes["peak_bytes"]),
                          "yes" if sizes["fits"] else "no")
    console.print(table)
    if not found["traced"]:
        say("activations are a rule of thumb: this architecture cannot be run without its weights")
    verdict = "fits" if found["fits"] else f"does not fit; {found['fix']}"
    recomputed = ", gradient_checkpointing" if found["gradient_checkpointing"] else ""
    say(f"{found['method']}{recomputed}: {size(found['peak_bytes'])} at most, {verdict}")
    if largest := found["largest_pack_tokens"]:
        say(f"largest pack_tokens that fits: {largest:,}" + (" (more gains nothing)" if largest >= MOST else ""))
    say(f"{found['trained_parameters']:,} parameters trained; {found['flops_per_token'] / 1e9:,.2f} GFLOP a token")
    if found["updates"]:
        tokens = f", about {found['tokens']:,} tokens" if found["tokens"] else ""
        hours = f", roughly {found['seconds'] / 3600:.1f} h" if found["seconds"] is not None else ""
        say(f"{found['updates']:,} updates{tokens}{hours}")
    if found["processes"]:
        _print_processes(console, found)
    disk = found["disk"]
    say(f"disk: {size(disk['bytes'])} ({disk['checkpoints']} × {size(disk['checkpoint_bytes'])} of checkpoints, "
        f"{size(disk['model_bytes'])} for the model), {size(disk['free_bytes'])} free here")


def _print_processes(console, found: dict[str, Any]) -> None:
    """What each of several GPUs holds, sends and gains, with the assumptions behind it."""
    from rich.table import Table

    from posttrain.model.memory import size

    table = Table("GPUs", "method", "held by a GPU", "sent by a GPU", "computing", "sending", "as fast as")
    for method, rows in found["processes"].items():
        for row in rows:
            table.add_row(str(row["gpus"]), method, size(row["memory"]), size(row["sent"]),
                          f"{row['computing']:.3f} s", f"{row['sending']:.3f} s", f"{row['speedup']:.1f} GPUs")
    console.print(table)
    console.print(f"on paper, per update of one pack of {found['planned_tokens']:,} tokens on each GPU: H100s at 0.4 "
                  "of 989 TFLOP/s, 450 GB/s within a machine of eight, 50 GB/s a GPU beyond; full in shards, whose "
                  "sending goes on beside the computing; lora's follows it", markup=False, soft_wrap=True)
