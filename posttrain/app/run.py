"""A finished or stopped run, seen from Python: everything is read from its folder."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.app.runs import checkpoints
from posttrain.core.config import read_config
from posttrain.core.errors import UserError


class Run:
    """The folder of a run. `path` is the run, `model_path` the Hugging Face or PEFT folder it made."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "config.yaml").is_file():
            raise UserError("this folder is no run", where=str(path), expected="a folder with config.yaml",
                            fix="name the output_dir of a run")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def model_path(self) -> Path:
        return self.path / "model"

    @property
    def config(self) -> dict[str, Any]:
        """The resolved settings."""
        return read_config(self.path / "config.yaml")

    @property
    def status(self) -> dict[str, Any]:
        """run.json: status (running, interrupted, failed, finished), step, held-out losses."""
        return json.loads((self.path / "run.json").read_text("utf-8"))

    @property
    def ledger(self) -> dict[str, Any]:
        """What became of every row and token."""
        return json.loads((self.path / "ledger.json").read_text("utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """One dict per update."""
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text("utf-8").splitlines()]

    @property
    def checkpoints(self) -> list[Path]:
        """Folders of the complete checkpoints, oldest first."""
        return checkpoints(self.path)

    @cached_property
    def assistant(self):
        """The trained model, ready to answer; loaded on first use and kept."""
        from posttrain.app.assistant import load

        return load(self.path)

    def chat(self, messages: str | list[dict[str, Any]], **how: Any) -> str:
        """The trained model's answer; see `Assistant.chat`."""
        return self.assistant.chat(messages, **how)
