"""What a run writes besides weights: metrics, ledger, rejected rows, status. One folder, plain files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..core.config import Settings, dump_config
from ..data.ledger import Ledger
from ..model.checkpoint import write_error


class Record:
    """The files of one run folder; every write failure is a UserError."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, settings: Settings) -> None:
        """A new run: the resolved settings, and empty lists."""
        self.settings(settings)
        for name in ("metrics.jsonl", "rejected.jsonl"):
            self._write(name, "")

    def settings(self, settings: Settings) -> None:
        """config.yaml, as an input that starts the same run anew."""
        self._write("config.yaml", dump_config(settings.model_copy(update={"resume": False})))

    def rewind(self, step: int) -> None:
        """Forget what was logged after update `step`; lines before it stay as they are."""
        for name in ("metrics.jsonl", "rejected.jsonl"):
            path = self.folder / name
            lines = path.read_text("utf-8").split("\n")[:-1] if path.is_file() else []  # the rest was half written
            self._write(name, "".join(f"{line}\n" for line in lines if json.loads(line).get("step", 0) <= step))

    def metrics(self, line: dict[str, Any]) -> None:
        self._append("metrics.jsonl", [line])

    def rejected(self, rows: list[dict[str, Any]], step: int) -> None:
        if rows:
            self._append("rejected.jsonl", [{**row, "step": step} for row in rows])

    def ledger(self, ledger: Ledger) -> None:
        ledger.check()
        self._write("ledger.json", json.dumps(ledger.to_json(), indent=1, ensure_ascii=False) + "\n")

    def status(self, **facts: Any) -> None:
        """run.json: status, step, validation losses, model folder, …; later facts replace earlier ones."""
        self._write("run.json", json.dumps(self.read_status() | facts, indent=1, ensure_ascii=False) + "\n")

    def read_status(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        return json.loads(path.read_text("utf-8")) if path.is_file() else {}

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        try:
            with (self.folder / name).open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        except OSError as e:
            raise write_error(e, self.folder / name) from e

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        beside = path.with_name(f".{name}.partial")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            beside.write_text(text, "utf-8")
            os.replace(beside, path)
        except OSError as e:
            raise write_error(e, path) from e
