"""What test_ranks.py computes alone and in two processes: `main` is what each of two does."""

from __future__ import annotations

import errno
import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from unittest.mock import patch

import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "train"))
import test_ppo  # noqa: E402
from test_layout import model, sequences  # noqa: E402
from test_layout_of_pairs import OBJECTIVES as PREFERENCES  # noqa: E402
from test_layout_of_pairs import atoms  # noqa: E402

import posttrain  # noqa: E402
from posttrain.core import ranks  # noqa: E402
from posttrain.core.errors import UserError  # noqa: E402
from posttrain.model.heads import make_heads  # noqa: E402
from posttrain.model.probe import prepare_forward  # noqa: E402
from posttrain.model.shard import shard_model  # noqa: E402
from posttrain.train import session  # noqa: E402
from posttrain.train.objective import Models  # noqa: E402
from posttrain.train.objectives.sft import SFT  # noqa: E402
from posttrain.train.optim import MasterAdamW  # noqa: E402
from posttrain.train.reference import Remembered  # noqa: E402
from posttrain.train.sharded import ShardedAdamW  # noqa: E402
from posttrain.train.share import even_packs, share_packs  # noqa: E402
from posttrain.train.update import accumulate, evaluate, lay_packs  # noqa: E402

GRPO = {"objective": "grpo", "num_generations": 3, "advantages": "batch", "kl_coef": 0.1}
ONLINE = {"objective": "online_dpo", "pack_tokens": 160, "beta": 0.3}
SAMPLED = {"ppo": (6, {}), "grpo": (6, GRPO), "ppo of one": (1, {}), "grpo of one": (1, GRPO),  # prompts, and keys
           "online_dpo": (6, ONLINE), "online_dpo of one": (1, ONLINE)}
ROWS = {"eight": slice(0, 8), "seven": slice(0, 7), "one": slice(4, 5)}  # of one row another process gets nothing


def update(kind: str, dtype: torch.dtype, rows: slice, room: int) -> dict[str, float]:
    """Two updates on these rows -> loss, gradient norm of each, and a sum over the weights they leave."""
    made = model(dtype, lora=kind == "lora")
    apart = kind == "sharded" and ranks.world() > 1
    if apart:
        shard_model(made, dtype, torch.device("cpu"))
    make = ShardedAdamW if apart else MasterAdamW
    optimizer = make(made.named_parameters(), beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0)
    models = Models(prepare_forward(made)[0])
    found: dict[str, float] = {}
    for step in (1, 2):
        packs = share_packs([[s] for s in sequences()[rows]], room)
        optimizer.begin(len(packs))
        found[f"loss {step}"] = accumulate(models, SFT(), packs, seed=0, step=step)["loss"]
        optimizer.sum_over_processes()
        norm = optimizer.norm()
        found[f"norm {step}"] = float(norm)
        optimizer.step(1e-2, 0.0, norm)
    found["held out"] = evaluate(models, SFT(), share_packs([[s] for s in sequences()], room))["loss"]
    found["weights"] = float(sum(optimizer.master(i).double().abs().sum() for i in range(len(optimizer.named))))
    return found


def preference(name: str, kind: str) -> dict[str, float]:
    """One update of an objective on pairs in float64 -> its means, the gradient's norm, a sum over the weights."""
    objective = PREFERENCES[name]
    made = model(torch.float64, lora=kind == "lora")
    apart = kind == "sharded" and ranks.world() > 1
    if apart:
        shard_model(made, torch.float64, torch.device("cpu"))
    forward, _ = prepare_forward(made)
    forward.heads = make_heads(made, objective.needs, 0)
    names = [*made.named_parameters(), *forward.heads.named_parameters("heads")] if forward.heads else [
        *made.named_parameters()]
    optimizer = (ShardedAdamW if apart else MasterAdamW)(names, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0)
    reference = Remembered(Path("nowhere"))
    rows = objective.arrange(atoms())
    if objective.referenced:
        reference.learn(forward, [lay_packs(rows, 140)])
    models = Models(forward, reference)
    (packs,) = objective.collect(share_packs(rows, 140), models)
    optimizer.begin(len(packs))
    means = accumulate(models, objective, packs, seed=0, step=1)
    optimizer.sum_over_processes()
    norm = optimizer.norm()
    optimizer.step(1e-2, 0.0, norm)
    weights = float(sum(optimizer.master(i).double().abs().sum() for i in range(len(optimizer.named))))
    return means | {"norm": float(norm), "weights": weights}


def reinforced(prompts: int, kind: dict) -> dict[str, float]:
    """Two collections of PPO or GRPO in float64 -> the facts and means of every update, a sum over the weights."""
    objective, models, forward = test_ppo.stage(**kind)
    optimizer = MasterAdamW([*forward.model.named_parameters(), *forward.heads.named_parameters()], beta1=0.9,
                            beta2=0.99, eps=1e-8, weight_decay=0.0)
    found: dict[str, float] = {}
    for step in range(2):
        packs = share_packs(test_ppo.atoms(prompts), 80)
        for n, batch in enumerate(filter(None, objective.collect(packs, models))):
            batch = even_packs(batch)
            optimizer.begin(len(batch))
            means = accumulate(models, objective, batch, seed=0, step=1)
            objective.updated(means)
            optimizer.sum_over_processes()
            norm = optimizer.norm()
            optimizer.step(1e-3, 0.0, norm)
            told = means | {k: v for k, v in objective.facts.items() if "seconds" not in k} | {"norm": float(norm)}
            found |= {f"{step}.{n} {name}": value for name, value in told.items()}
    return found | {"weights": float(sum(p.double().abs().sum() for _, p in optimizer.named))}


def everything() -> dict[str, dict[str, float]]:
    """Every combination by name."""
    dtypes = (torch.float64, torch.float32)
    pairs = {f"{kind} {name}": preference(name, kind) for kind in ("lora", "sharded") for name in PREFERENCES}
    pairs |= {f"sampled {name}": reinforced(*asked) for name, asked in SAMPLED.items()}
    return pairs | {f"{kind} {str(dtype).removeprefix('torch.')} {name}": update(kind, dtype, rows, room=140)
            for kind in ("full", "lora", "sharded") for dtype in dtypes for name, rows in ROWS.items()}


def train(work: Path, name: str, **values) -> None:
    """A short run of work's model on work's rows into work/NAME, its data loaded in this process."""
    spec = spec_from_file_location("fixtures", Path(__file__).parents[1] / "conftest.py")
    spec.loader.exec_module(fixtures := module_from_spec(spec))
    asked = {"model": work / "model", "data": str(work / "rows.json"), "max_steps": 4, "save_steps": 2, "batch_size": 7,
             "dtype": "float32", "learning_rate": 1e-3, "eval_split": 0.1, "pack_tokens": 128, "max_length": 128}
    with patch("posttrain.data.loader.Loader", fixtures.InProcessLoader):
        posttrain.sft(output_dir=work / name, **(asked | values if "resume" not in values else values))


def refusals(work: Path) -> dict[str, str]:
    """What runs of two processes say where a row is no number, a disk is full, or the processes are not alike."""
    found, second, real, write = {}, ranks.rank() == 1, SFT.loss, HuggingFaceStorageWriter.write_data
    codes = session.code_versions

    def loss(self, out, pack):
        value, more = real(self, out, pack)
        bad = any(o.endswith("rows.json:22") for o in pack.origins)
        return value + 0 * (value.detach() - value).sqrt() if bad else value, more  # the slope alone is no number

    def full(*given):
        if second:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*given)

    tries = {"row-lora": (SFT, "loss", loss, "lora"), "row-full": (SFT, "loss", loss, "full"),
             "disk": (HuggingFaceStorageWriter, "write_data", full, "full"),
             "code": (session, "code_versions", lambda *a: codes(*a) | ({"torch": "9.9"} if second else {}), "lora")}
    for name, (where, what, by, method) in tries.items():
        try:
            with patch.object(where, what, by):
                train(work, name, method=method, shuffle=False)
        except UserError as e:
            found[name] = str(e)
    return found


def main(work: Path) -> None:
    """All of it, in one of two processes."""
    torch.set_num_threads(1)
    ranks.begin("cpu")
    ranks.end = lambda: None  # the runs share one meeting of the processes
    (work / f"found.{ranks.rank()}").write_text(json.dumps(everything()))
    for method in ("full", "lora"):
        train(work, f"two-{method}", method=method)
        train(work, f"onto-two-{method}", resume=True, allow_changes=True)
    (work / f"refused.{ranks.rank()}").write_text(json.dumps(refusals(work)))
    if ranks.rank() == 1:
        os._exit(7)
    try:
        with ranks.together():
            ranks.wait()
    except ranks.LostError as e:
        (work / "lost.txt").write_text(str(e))
