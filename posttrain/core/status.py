"""run.json as it lies on the disk, whatever became of it. No torch here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def read_status(folder: Path, note: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """The facts of run.json; {} where there is none yet, or, with a note, where it cannot be read.

    It holds nothing that a resume needs: the checkpoints say where a run goes on (test_folder.py).
    """
    path = folder / "run.json"
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:  # cut off, empty, or no text
        found = None
    if isinstance(found, dict):
        return found
    note(f"{path} is damaged: it is written anew")
    return {}


def is_finished(folder: Path) -> bool:
    """Whether nothing is left to do for a run: it has said so, and its model is there."""
    return read_status(folder).get("status") == "finished" and (folder / "model").is_dir()
