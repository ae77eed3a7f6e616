"""Whether a technique helps where its paper says so, on the embedded model: held-out answers with it and without.

`python -m bench.techniques`: label smoothing where a part of the answers is wrong, NEFTune where rows are few and seen
often.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import posttrain
from posttrain.builtin import builtin_data_path, held_out_path
from posttrain.eval.held_out import read_questions, score

ROWS = [json.loads(line) for line in builtin_data_path().read_text("utf-8").splitlines()]
HOW = {"model": "builtin", "method": "full", "learning_rate": 6e-4, "batch_size": 32, "max_length": 256}


def wrong(share: float, seed: int) -> list[dict]:
    """The embedded rows, of which a share has the answer of another row of its kind."""
    random_ = random.Random(f"wrong {seed}")
    kinds: dict[str, list[str]] = {}
    for row in ROWS:
        kinds.setdefault(row["kind"], []).append(row["output"])
    return [row | {"output": random_.choice(kinds[row["kind"]])} if random_.random() < share else row for row in ROWS]


def few(count: int, seed: int) -> list[dict]:
    """So many of the embedded rows."""
    return random.Random(f"few {seed}").sample(ROWS, count)


TRIALS = {
    "label_smoothing_factor": (lambda seed: wrong(0.3, seed), [0.0, 0.1, 0.2], {"num_train_epochs": 3}),
    "neftune_noise_alpha": (lambda seed: few(400, seed), [None, 5, 10], {"num_train_epochs": 15}),
}


def measure(rows: list[dict], seed: int, **keys) -> float:
    """Share of the held-out questions answered to the letter, after a run on these rows."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        assistant = posttrain.load(posttrain.sft(data=data, seed=seed, output_dir=f"{folder}/run", **HOW | keys))
        questions = read_questions(held_out_path())
        return score(assistant.model, assistant.forward, assistant.renderer, questions)[0].exact_match


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--key", choices=list(TRIALS), nargs="*", default=list(TRIALS))
    asked = parser.parse_args()
    for key in asked.key:
        make, values, more = TRIALS[key]
        print("| seed | " + " | ".join(f"{key}: {value}" for value in values) + " |\n|" + "---|" * (len(values) + 1),
              flush=True)
        for seed in asked.seeds:
            found = [measure(make(seed), seed, **{key: value}, **more) for value in values]
            print(f"| {seed} | " + " | ".join(f"{right:.1%}" for right in found) + " |", flush=True)


if __name__ == "__main__":
    main()
