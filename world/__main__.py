"""`python -m world`: make everything in `posttrain/builtin/` again, from the tables and one seed."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from posttrain.builtin import PARTS, builtin_data_path, builtin_model_path

from .facts import Kind, read_kinds
from .prose import all_passes, one_pass
from .rows import held_out_questions, instruction_rows
from .tokenizer import save_tokenizer, train_tokenizer

HERE = Path(__file__).resolve().parent
SEED = 1
PASSES = 90  # tellings of every fact in the pretraining text
TOKENIZER_PASSES = 8
REPLAY_PASSES = (1000, 1001)  # tellings that pretraining has not used
VOCABULARY = 4096
KEPT = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m world", description=__doc__)
    parser.add_argument("what", nargs="?", default="all", choices=["all", "rows", "prose", "pretrain"],
                        help="all (default); rows: the JSONL files of the package; prose: the pretraining text and the "
                             "tokenizer; pretrain: train on them and put the weights into the package")
    parser.add_argument("--scratch", type=Path, default=Path("build/world"), help="folder of the text and the run")
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--passes", type=int, default=PASSES)
    given = parser.parse_args()
    kinds = read_kinds(given.seed)
    if given.what in ("all", "rows"):
        for part, records in package_files(kinds, given.seed).items():
            write_jsonl(builtin_data_path(part), records)
    if given.what in ("all", "prose"):
        write_prose(kinds, given.seed, given.passes, given.scratch)
    if given.what in ("all", "pretrain"):
        pretrain(given.scratch)
    return 0


def package_files(kinds: list[Kind], seed: int) -> dict[str, list[dict[str, str]]]:
    """Records of every JSONL file of the package, by part. The replayed prose tells all that the base knows."""
    replay = [text for number in REPLAY_PASSES for text in one_pass(kinds, seed, number)]
    asked = held_out_questions(kinds, seed)
    made = {"rows": instruction_rows(kinds, seed), "prose": [{"text": text} for text in replay], "held_out": asked,
            "facts": [{"text": q["prefix"] + q["continuation"]} for q in asked]}
    assert set(made) == set(PARTS) - {"general"}  # which is written by hand
    return made


def write_prose(kinds: list[Kind], seed: int, passes: int, scratch: Path) -> None:
    """`prose.jsonl` and `tokenizer/` of the scratch folder."""
    write_jsonl(scratch / "prose.jsonl", ({"text": text} for text in all_passes(kinds, seed, passes)))
    chats = [f"User: {row['instruction']}\nAssistant: {row['output']}" for row in instruction_rows(kinds, seed)]
    texts = list(all_passes(kinds, seed, TOKENIZER_PASSES))
    save_tokenizer(train_tokenizer(texts + chats, VOCABULARY), scratch / "tokenizer")


def pretrain(scratch: Path) -> None:
    """Train on the scratch folder's text by `posttrain sft`, and copy the plain model files into the package."""
    run = scratch / "run"
    shutil.rmtree(run, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "posttrain", "sft", str(HERE / "pretrain.yaml"),
                    "--model_config", str(HERE / "tiny.yaml"), "--tokenizer", str(scratch / "tokenizer"),
                    "--data", str(scratch / "prose.jsonl"), "--output_dir", str(run)], check=True)
    install(run / "model", scratch / "tokenizer", builtin_model_path())


def install(trained: Path, tokenizer: Path, target: Path) -> None:
    """The files that a plain base model folder has: weights of the run, tokenizer as trained, without a template."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for name in KEPT:
        shutil.copyfile((tokenizer if name.startswith("tokenizer") else trained) / name, target / name)


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """One JSON object per line, UTF-8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    sys.exit(main())
