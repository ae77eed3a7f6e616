"""What a narrow task makes the embedded assistant forget, and what replaying a tenth of old rows brings back.

`python -m bench.forgetting`: the demo's assistant learns to name opposites in a single word, with and without
`--data old@0.1`, and answers the held-out questions: none asks for an opposite, all want a sentence.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import posttrain
from posttrain.builtin import builtin_data_path, demo_settings_path, held_out_path
from posttrain.core.config import read_config
from posttrain.eval.held_out import read_questions, score

NARROW = "opposites-en"
HOW = {"method": "full", "learning_rate": 3e-4, "num_train_epochs": 4, "batch_size": 32, "max_length": 256}


def parts(folder: Path) -> tuple[Path, Path]:
    """The rows of the narrow task (one kind, answered in its last word), and those of all other kinds, as files."""
    rows = [json.loads(line) for line in builtin_data_path().read_text("utf-8").splitlines()]
    narrow = [r | {"output": r["output"].rstrip(".").split()[-1]} for r in rows if r["kind"] == NARROW]
    made = []
    for name, kept in (("narrow", narrow), ("old", [r for r in rows if r["kind"] != NARROW])):
        made.append(folder / f"{name}.jsonl")
        made[-1].write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept), "utf-8")
    return made[0], made[1]


def measure(model) -> dict[str, float]:
    """Share of the held-out questions that a model (run, folder or name) answers exactly, and what else is scored."""
    assistant = posttrain.load(model)
    questions = read_questions(held_out_path())
    found, _ = score(assistant.model, assistant.forward, assistant.renderer, questions)
    return found.to_json()


def assistant(folder: Path, **values) -> Path:
    """The demo's run, which is where forgetting starts from."""
    settings = read_config(demo_settings_path()) | {"output_dir": folder / "assistant"} | values
    return posttrain.sft(**settings).model_path


def forget(start: Path, folder: Path, seed: int, share: float | None, **values) -> dict[str, float]:
    """The narrow task learnt from `start`, with `share` of old rows in every update, and what is left."""
    narrow, old = parts(folder)
    data = [narrow] + ([f"{old}@{share}"] if share else [])
    run = posttrain.sft(model=start, data=data, seed=seed, output_dir=folder / f"{seed}-{share or 0}",
                        **(HOW | values))
    return measure(run)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--share", type=float, default=0.1)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        start = assistant(folder)
        before = measure(start)["exact_match"]
        print("| seed | before | narrow alone | with replay | of the drop recovered |\n|---|---|---|---|---|")
        for seed in asked.seeds:
            alone, replayed = (forget(start, folder, seed, share)["exact_match"] for share in (None, asked.share))
            print(f"| {seed} | {before:.1%} | {alone:.1%} | {replayed:.1%} | "
                  f"{(replayed - alone) / (before - alone):.0%} |", flush=True)


if __name__ == "__main__":
    main()
