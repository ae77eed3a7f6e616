"""What a model name means: the embedded base, a run, a checkpoint, an adapter, a Hugging Face folder, or a hub id."""

from __future__ import annotations

import difflib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

from ..builtin import builtin_model_path
from ..core.config import BUILTIN, read_config
from ..core.errors import UserError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
NO_MODEL = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".txt", ".yaml", ".yml", ".gz")  # a file's name, no hub id's


@dataclass(frozen=True, slots=True)
class ModelRef:
    """Where the parts of a model lie. `base` holds whole weights; `adapter` and `checkpoint` go on top of it."""

    name: str
    base: str
    tokenizer: str
    adapter: Path | None = None
    checkpoint: Path | None = None
    run: Path | None = None

    @property
    def is_hub(self) -> bool:
        return not Path(self.base).exists()


def resolve_model(name: str | os.PathLike) -> ModelRef:
    """The parts behind a model name; a name that is nothing of these is a UserError.

    `builtin` · run folder · RUN/checkpoints/N · adapter folder · Hugging Face folder · hub id (never an existing path).
    """
    text = os.fspath(name)
    if text == BUILTIN:
        folder = str(builtin_model_path())
        return ModelRef(text, folder, folder)
    path = Path(text).expanduser()
    if path.is_dir():
        return _folder(text, path)
    if path.exists():
        raise UserError("a model is a folder, this is a file", where=text,
                        fix="name the folder that holds config.json or adapter_config.json")
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or not HUB_ID.fullmatch(text) or (
            "/" in text and path.parent.is_dir()) or path.suffix in NO_MODEL or (
            difflib.get_close_matches(text, [BUILTIN], cutoff=0.8)):
        raise UserError("there is no such model folder", where=text, fix=_nearest(path))
    return ModelRef(text, text, text)


def _folder(name: str, path: Path) -> ModelRef:
    if (path / "config.yaml").is_file() and not (path / "config.json").is_file():
        return _run(name, path)
    if path.parent.name == "checkpoints" and (path / "manifest.json").is_file():
        return _checkpoint(name, path, path.parent.parent)
    if (path / "adapter_config.json").is_file():
        base = _base_of(path / "adapter_config.json")
        return ModelRef(name, base, str(path) if (path / "tokenizer_config.json").is_file() else base, adapter=path)
    if (path / "config.json").is_file():
        return ModelRef(name, str(path), str(path))
    inside = sorted(p.name for p in path.iterdir())[:8]
    raise UserError("this folder holds no model", where=str(path), found=", ".join(inside) or "an empty folder",
                    expected="config.json (a model), adapter_config.json (an adapter) or config.yaml (a run)")


def _base_of(config: Path) -> str:
    """The folder or hub id of the whole model that an adapter belongs to."""
    base = _read_json(config).get("base_model_name_or_path")
    if not base:
        raise UserError("the adapter does not say which base it belongs to", where=str(config),
                        expected="base_model_name_or_path")
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError("the base of this adapter is no whole model", where=str(config), found=base,
                            expected="a folder with config.json",
                            fix="merge that base into a whole model, and name it as base_model_name_or_path")
        return str(folder)
    try:
        return resolve_model(base).base
    except UserError:
        raise UserError("the base of this adapter is not there", where=str(config), found=base,
                        fix="put the base there, or correct base_model_name_or_path") from None


def gives_scores(ref: ModelRef) -> bool:
    """Whether a folder says that it is a reward model: a sequence-classification model, or an adapter of one."""
    if ref.adapter:
        return _read_json(ref.adapter / "adapter_config.json").get("task_type") == "SEQ_CLS"
    config = Path(ref.base) / "config.json"
    names = _read_json(config).get("architectures") if config.is_file() else None
    return any("SequenceClassification" in name for name in names or [])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text("utf-8"))
    except ValueError as e:
        raise UserError(f"{path.name} is not valid JSON", where=str(path), found=str(e),
                        fix="fetch or copy this folder again") from None
    if not isinstance(read, dict):
        raise UserError(f"{path.name} holds no keys", where=str(path), found=type(read).__name__,
                        fix="fetch or copy this folder again")
    return read


def list_checkpoints(folder: Path) -> list[Path]:
    """Folders that carry a step's number as their name, oldest first; not verified."""
    found = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.name))


def _run(name: str, run: Path) -> ModelRef:
    if (run / "model" / "adapter_config.json").is_file() or (run / "model" / "config.json").is_file():
        ref = _folder(name, run / "model")
        return ModelRef(name, ref.base, ref.tokenizer, ref.adapter, ref.checkpoint, run)
    kept = [p for p in list_checkpoints(run / "checkpoints") if (p / "manifest.json").is_file()]
    if not kept:
        verb = read_config(run / "config.yaml").get("objective", "sft")
        raise UserError("this run has neither a finished model nor a checkpoint yet", where=str(run),
                        fix=f"go on with `posttrain {verb} --resume --output_dir {quote(str(run))}`")
    return _checkpoint(name, kept[-1], run)


def _checkpoint(name: str, path: Path, run: Path) -> ModelRef:
    facts = _read_json(path / "state.json")
    tokenizer = run / "tokenizer"
    return ModelRef(name, facts["base"], str(tokenizer), Path(facts["adapter"]) if facts.get("adapter") else None,
                    path, run)


def _nearest(path: Path) -> str:
    siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
    near = [str(path.parent / n) for n in difflib.get_close_matches(path.name, siblings, n=1)]
    near += difflib.get_close_matches(str(path), [BUILTIN], cutoff=0.8)
    return f"did you mean {near[0]}?" if near else "name an existing folder, a hub id, or `builtin`"
