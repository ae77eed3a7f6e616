"""What a narrow task makes the embedded assistant forget, and what replaying a tenth of old rows brings back.

`python -m bench.forgetting`: the demo's assistant learns to name opposites in a single word, with and without
`--data old@0.1`, and answers the held-out questions: none asks for an opposite, all want a sentence. Every ninth row
of the narrow task is held back, and asked too: replay that kept the task from being learnt would be no remedy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import posttrain
from posttrain.builtin import builtin_rows, demo_settings_path, held_out_path
from posttrain.core.config import read_config
from posttrain.eval.held_out import Question, read_questions
from posttrain.eval.manners import write_rows

from .held_out import right

NARROW = "opposites-en"
HELD_BACK = 9
HOW = {"method": "full", "learning_rate": 1e-4, "num_train_epochs": 8, "batch_size": 32, "max_length": 256}


def narrow_rows() -> list[dict]:
    """The rows of the narrow task: one kind of the embedded rows, answered in its last word alone."""
    return [row | {"output": row["output"].rstrip(".").split()[-1]} for row in builtin_rows() if row["kind"] == NARROW]


def parts(folder: Path) -> tuple[Path, Path]:
    """The rows of the narrow task that are not held back, and those of all other kinds, as files."""
    narrow = [row for i, row in enumerate(narrow_rows()) if i % HELD_BACK]
    old = [row for row in builtin_rows() if row["kind"] != NARROW]
    return write_rows(folder / "narrow.jsonl", narrow), write_rows(folder / "old.jsonl", old)


def measure(model) -> tuple[float, float]:
    """Shares answered exactly by a model (run, folder or name): of the held-out questions, of the rows held back."""
    narrow = [Question(row["instruction"], row["output"]) for row in narrow_rows()[::HELD_BACK]]
    rest, new = right(model, read_questions(held_out_path()), narrow)
    return rest, new


def assistant(folder: Path, **values) -> Path:
    """The demo's run, which is where forgetting starts from."""
    settings = read_config(demo_settings_path()) | {"output_dir": folder / "assistant"} | values
    return posttrain.sft(**settings).model_path


def forget(start: Path, folder: Path, seed: int, share: float | None, **values) -> tuple[float, float]:
    """The narrow task learnt from `start`, with `share` of old rows in every update: what `measure` finds after."""
    narrow, old = parts(folder)
    data = [narrow] + ([f"{old}@{share}"] if share else [])
    run = posttrain.sft(model=start, data=data, seed=seed, output_dir=folder / f"{seed}-{share or 0}",
                        **(HOW | values))
    return measure(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--start", type=Path, help="a trained assistant; without it, the demo's is trained first")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        start = asked.start or assistant(folder)
        before, new = measure(start)
        print(f"before: held-out {before:.1%}, opposites in a word {new:.1%}\n\n"
              "| seed | held-out: alone | with replay | of the drop recovered | opposites: alone | with replay |\n"
              "|---|---|---|---|---|---|", flush=True)
        for seed in asked.seeds:
            (alone, alone_new), (both, both_new) = (forget(start, folder, seed, s) for s in (None, asked.share))
            print(f"| {seed} | {alone:.1%} | {both:.1%} | {(both - alone) / (before - alone):.0%} "
                  f"| {alone_new:.1%} | {both_new:.1%} |", flush=True)


if __name__ == "__main__":
    main()
