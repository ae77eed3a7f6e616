"""GRPO on sums of two-digit numbers, seed by seed: held-out sums right after fine-tuning and after GRPO.

`python -m bench.sums` runs recipes/align/sums_start.yaml and sums_grpo.yaml on the embedded model, both with each seed.
"""

from __future__ import annotations

import argparse
import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

import posttrain
from posttrain.core.config import read_config
from posttrain.eval.held_out import Question

from .held_out import right
from .shapes import ROOT

RECIPES = ROOT / "recipes" / "align"


def held_out() -> list[Question]:
    """The sums that neither fine-tuning nor GRPO asks."""
    rows = runpy.run_path(str(RECIPES / "sums.py"))["parts"]()["held_out"]
    return [Question(row["instruction"], row["output"]) for row in rows]


def learn(folder: Path, seed: int, **keys) -> tuple[float, float, Any]:
    """(share right after fine-tuning, after GRPO, GRPO's run) of one seed; `keys` go over those of the recipe."""
    runpy.run_path(str(RECIPES / "sums.py"))["main"](str(folder))
    start = read_config(RECIPES / "sums_start.yaml") | {"data": [f"{folder}/start.jsonl"], "seed": seed}
    start.pop("objective")
    tuned = posttrain.sft(**start, output_dir=folder / f"start-{seed}").model_path
    how = read_config(RECIPES / "sums_grpo.yaml") | {"model": str(tuned), "data": [f"{folder}/prompts.jsonl"],
                                                    "seed": seed} | keys
    how.pop("objective")
    run = posttrain.grpo(**how, output_dir=folder / f"grpo-{seed}")
    questions = held_out()
    return *right(tuned, questions), *right(run, questions), run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--set", default="{}", help="keys over GRPO's recipe, as JSON")
    asked = parser.parse_args()
    print("| seed | after fine-tuning | after GRPO | sampled answers right, first and last collection | updates |\n"
          "|---|---|---|---|---|", flush=True)
    for seed in asked.seeds:
        with tempfile.TemporaryDirectory() as where:
            before, after, run = learn(Path(where), seed, **json.loads(asked.set))
            lines = [line for line in run.metrics if "reward" in line]
        print(f"| {seed} | {before:.1%} | {after:.1%} | {lines[0]['reward']:.1%}, {lines[-1]['reward']:.1%} "
              f"| {lines[-1]['step']} |", flush=True)


if __name__ == "__main__":
    main()
