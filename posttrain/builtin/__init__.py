"""The embedded pair: a small base model and its rows, so that a first run needs no hub. No torch here.

`world/` in the repository made every file in this folder but general.jsonl (short texts of our own, in English, Chinese
and code, for the forgetting gate); `docs/builtin.md` tells how.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent

# What may stand after `builtin:` in `--data`; a bare `builtin` is the rows.
PARTS = {"rows": "rows.jsonl", "prose": "prose.jsonl", "held_out": "held_out.jsonl",
         "facts": "facts.jsonl", "general": "general.jsonl"}


def builtin_model_path() -> Path:
    """Folder of the base model: config.json, model.safetensors (bf16), tokenizer.json; no chat template."""
    return FOLDER / "model"


def builtin_data_path(part: str = "rows") -> Path:
    """JSONL file of a part: `rows` (instruction, output, kind), `prose` (text), `held_out`, `facts` or
    `general` (text)."""
    return FOLDER / PARTS[part]


def builtin_rows() -> list[dict[str, Any]]:
    """The rows that the embedded assistant is trained on."""
    return [json.loads(line) for line in builtin_data_path().read_text("utf-8").splitlines()]


def prose_path() -> Path:
    """Text rows of the base model's own prose (`text`), to be mixed into SFT so that it keeps what it knows."""
    return builtin_data_path("prose")


def held_out_path() -> Path:
    """Questions about facts that no row mentions.

    `prompt`, `answer` (exact, without surrounding space), `kind`, `subject`, `value`, and the same fact as prose:
    the base knows it when its greedy continuation of `prefix` begins with `continuation` (leading space included).
    """
    return builtin_data_path("held_out")


def demo_settings_path() -> Path:
    """YAML settings of the demo's run; `data` names its parts as `builtin` and `builtin:prose@0.2`."""
    return FOLDER / "demo.yaml"


def builtin_spec(spec: str) -> str:
    """A `--data` spec with a leading `builtin[:PART]` replaced by its path; suffixes and other specs stay."""
    for name in ("builtin", *(f"builtin:{part}" for part in PARTS)):
        rest = spec.removeprefix(name)
        if spec.startswith(name) and (not rest or rest[0] in "@["):
            return str(builtin_data_path(name.partition(":")[2] or "rows")) + rest
    return spec
