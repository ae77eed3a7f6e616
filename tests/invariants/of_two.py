"""What test_ranks.py computes alone and in two processes: run as `python of_two.py OUT`, once per process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_layout import model, sequences  # noqa: E402

from posttrain.core import ranks  # noqa: E402
from posttrain.model.probe import prepare_forward  # noqa: E402
from posttrain.train.objective import Models  # noqa: E402
from posttrain.train.objectives.sft import SFT  # noqa: E402
from posttrain.train.optim import MasterAdamW  # noqa: E402
from posttrain.train.share import share_packs, sum_gradients  # noqa: E402
from posttrain.train.update import accumulate, evaluate  # noqa: E402

ROWS = {"eight": slice(0, 8), "seven": slice(0, 7), "one": slice(4, 5)}  # of one row another process gets nothing


def update(kind: str, dtype: torch.dtype, rows: slice, room: int) -> dict[str, float]:
    """Two updates on these rows -> loss, gradient norm of each, and a sum over the weights they leave."""
    made = model(dtype, lora=kind == "lora")
    optimizer = MasterAdamW(made.named_parameters(), beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=0.0)
    models = Models(prepare_forward(made)[0])
    found: dict[str, float] = {}
    for step in (1, 2):
        packs = share_packs([[s] for s in sequences()[rows]], room)
        optimizer.begin(len(packs))
        found[f"loss {step}"] = accumulate(models, SFT(), packs, seed=0, step=step)["loss"]
        sum_gradients(optimizer)
        norm = optimizer.norm()
        found[f"norm {step}"] = float(norm)
        optimizer.step(1e-2, 0.0, norm)
    found["held out"] = evaluate(models, SFT(), share_packs([[s] for s in sequences()], room))["loss"]
    found["weights"] = float(sum(optimizer.master(i).double().abs().sum() for i in range(len(optimizer.named))))
    return found


def everything() -> dict[str, dict[str, float]]:
    """Every combination by name."""
    return {f"{kind} {str(dtype).removeprefix('torch.')} {name}": update(kind, dtype, rows, room=140)
            for kind in ("full", "lora") for dtype in (torch.float64, torch.float32) for name, rows in ROWS.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    ranks.begin("cpu")
    Path(f"{sys.argv[1]}.{ranks.rank()}").write_text(json.dumps(everything()))
    ranks.end()
