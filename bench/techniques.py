"""Whether a technique helps where its paper says so, on the embedded model: held-out answers with it and without.

`python -m bench.techniques`: NEFTune and label smoothing where rows are few and seen often, so that all of them are
learnt by heart; a tenth of the answers may be wrong (`--wrong 0.1`).
"""

from __future__ import annotations

import argparse
import random
import tempfile
from pathlib import Path

import posttrain
from posttrain.builtin import builtin_rows, held_out_path
from posttrain.eval.held_out import read_questions
from posttrain.eval.manners import write_rows

from .held_out import right

HOW = {"model": "builtin", "method": "full", "learning_rate": 6e-4, "batch_size": 32, "max_length": 256}
TRIALS = {"neither": {}, "neftune_noise_alpha: 5": {"neftune_noise_alpha": 5},
          "neftune_noise_alpha: 10": {"neftune_noise_alpha": 10},
          "label_smoothing_factor: 0.1": {"label_smoothing_factor": 0.1}}


def some(count: int, wrong: float, seed: int) -> list[dict]:
    """So many of the embedded rows; a share of them has the answer of another row of its kind."""
    random_, rows = random.Random(f"some {seed}"), builtin_rows()
    kinds: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(row["kind"], []).append(row["output"])
    return [row | {"output": random_.choice(kinds[row["kind"]])} if random_.random() < wrong else row
            for row in random_.sample(rows, count)]


def measure(rows: list[dict], seed: int, **keys) -> float:
    """Share of the held-out questions answered to the letter, after a run on these rows."""
    with tempfile.TemporaryDirectory() as folder:
        data = write_rows(Path(folder, "rows.jsonl"), rows)
        run = posttrain.sft(data=data, seed=seed, output_dir=f"{folder}/run", **HOW | keys)
        share, = right(run, read_questions(held_out_path()))
        return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--wrong", type=float, default=0.0, help="share of the rows with a wrong answer")
    asked = parser.parse_args()
    print("| seed | " + " | ".join(TRIALS) + " |\n|" + "---|" * (len(TRIALS) + 1), flush=True)
    for seed in asked.seeds:
        rows = some(asked.rows, asked.wrong, seed)
        found = [measure(rows, seed, num_train_epochs=asked.epochs, **keys) for keys in TRIALS.values()]
        print(f"| {seed} | " + " | ".join(f"{right:.1%}" for right in found) + " |", flush=True)


if __name__ == "__main__":
    main()
