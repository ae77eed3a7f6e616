"""What a run writes besides weights: metrics, ledger, rejected rows, status. One folder, plain files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..core.config import Settings, dump_config
from ..core.errors import UserError
from ..core.status import read_status
from ..data.ledger import Ledger
from ..model.checkpoint import writing


class Record:
    """The files of one run folder; every write failure is a UserError."""

    def __init__(self, folder: Path):
        self.folder = folder

    def start(self, settings: Settings) -> None:
        """A new run: the resolved settings, and empty lists."""
        self.settings(settings)
        for name in ("metrics.jsonl", "rejected.jsonl"):
            self._write(name, "")
        (self.folder / "samples.jsonl").unlink(missing_ok=True)

    def settings(self, settings: Settings) -> None:
        """config.yaml, as an input that starts the same run anew."""
        self._write("config.yaml", dump_config(settings.model_copy(update={"resume": False, "allow_changes": False})))

    def rewind(self, step: int, note: Callable[[str], None]) -> None:
        """Cut off what was logged after update `step`, or is no line of ours; the bytes before it stay as they are."""
        for name in self._lists():
            path, end, last = self.folder / name, 0, 0
            with self._writing(name), path.open("a+b") as file:
                file.seek(0)
                for line in file:
                    if (found := _step_of(line)) is None or found > step:
                        break
                    end, last = end + len(line), found
                file.truncate(end)
                os.fsync(file.fileno())
            if name == "metrics.jsonl" and last < step:
                note(f"metrics.jsonl ends at update {last}: the lines up to update {step} are lost")

    def flush(self, ledger: Ledger) -> None:
        """Bring everything to the disk, the ledger too: a checkpoint that follows never knows more than they do."""
        self.ledger(ledger)
        for name in self._lists():
            with self._writing(name), (self.folder / name).open("rb") as file:
                os.fsync(file.fileno())

    def diagnosis(self, error: UserError, checkpoint: Path | None) -> None:
        """diagnosis.json: why a guard stopped the run, the updates before it, and where the last good weights lie."""
        lines = (self.folder / "metrics.jsonl").read_text("utf-8").splitlines()[-20:]
        good = str(checkpoint) if checkpoint else "none yet: set save_steps"
        error.fix += f"; the last good checkpoint: {good}"
        told = {"message": error.message, "where": error.where, "found": error.found, "expected": error.expected,
                "fix": error.fix, "checkpoint": str(checkpoint) if checkpoint else None,
                "last_updates": [json.loads(line) for line in lines]}
        self._write("diagnosis.json", json.dumps(told, indent=1, ensure_ascii=False) + "\n")

    def _lists(self) -> list[str]:
        """The files that grow line by line; samples only where an objective samples."""
        sampled = ["samples.jsonl"] if (self.folder / "samples.jsonl").is_file() else []
        return ["metrics.jsonl", "rejected.jsonl", *sampled]

    def metrics(self, line: dict[str, Any]) -> None:
        self._append("metrics.jsonl", [line])

    def rejected(self, rows: list[dict[str, Any]], step: int) -> None:
        if rows:
            self._append("rejected.jsonl", [{**row, "step": step} for row in rows])

    def samples(self, answers: list[dict[str, Any]], step: int) -> None:
        """Some of the answers that update `step` was the first to learn from."""
        if answers:
            self._append("samples.jsonl", [{"step": step, **answer} for answer in answers])

    def masks(self, lines: str) -> None:
        """masks.jsonl: some rows token by token, as `posttrain data show --json` prints them."""
        self._write("masks.jsonl", lines)

    def ledger(self, ledger: Ledger) -> None:
        ledger.check()
        self._write("ledger.json", json.dumps(ledger.to_json(), indent=1, ensure_ascii=False) + "\n")

    def status(self, **facts: Any) -> None:
        """run.json: status, step, validation losses, model folder, …; later facts replace earlier ones."""
        self._write("run.json", json.dumps(self.read_status() | facts, indent=1, ensure_ascii=False) + "\n")

    def read_status(self) -> dict[str, Any]:
        return read_status(self.folder)

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        with self._writing(name), (self.folder / name).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        beside = path.with_name(f".{name}.partial")
        with self._writing(name):
            self.folder.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())  # or a power cut may leave an empty file of the final name
            os.replace(beside, path)

    def _writing(self, name: str):
        return writing(self.folder / name)


class SilentRecord(Record):
    """What every process but the first has: it writes nothing."""

    def start(self, settings: Settings) -> None:
        pass

    def rewind(self, step: int, note: Callable[[str], None]) -> None:
        pass

    def flush(self, ledger: Ledger) -> None:
        pass

    def _append(self, name: str, lines: list[dict[str, Any]]) -> None:
        pass

    def _write(self, name: str, text: str) -> None:
        pass


def _step_of(line: bytes) -> int | None:
    """The update that a line of metrics or of rejected rows belongs to; None if it was not written to its end."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
