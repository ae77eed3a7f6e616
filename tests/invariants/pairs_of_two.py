"""What each of two processes does for test_ranks_of_pairs.py: a short run of every objective that learns from
preferences."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

import posttrain

RUNS = {"reward-lora": ("reward", "lora"), "reward-full": ("reward", "full"), "dpo-lora": ("dpo", "lora"),
        "dpo-full": ("dpo", "full"), "kto-lora": ("kto", "lora"), "kto-full": ("kto", "full"),
        "orpo-lora": ("orpo", "lora")}
WORDS = ("red", "green", "blue", "one", "two", "three", "cat")


def write_rows(path: Path) -> None:
    """Pairs, some of them rankings of three, of very different lengths."""
    rows = [{"prompt": f"say {a}", "answers": [f"{a} {b}." * (1 + len(a) % 3), b, *([f"{b} {a} {a}"] if a < b else [])]}
            for a in WORDS for b in WORDS if a != b]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    labels = [{"prompt": r["prompt"], "completion": x, "label": n == 0}
              for r in rows for n, x in enumerate(r["answers"])]
    path.with_name("labels.jsonl").write_text("".join(json.dumps(r) + "\n" for r in labels))


def train(work: Path, name: str, folder: str) -> None:
    """One of RUNS into a folder."""
    verb, method = RUNS[name]
    getattr(posttrain, verb)(
        model=work / "model", data=work / ("labels.jsonl" if verb == "kto" else "ranked.jsonl"), method=method,
        max_steps=4, batch_size=7, max_length=48, pack_tokens=96, dtype="float32", learning_rate=1e-3, eval_split=0.2,
        output_dir=work / folder, console=Console(file=io.StringIO()))
