"""What a run's report shows and no other file keeps: reasons, some masks, the data with its hashes, the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.app.env import report
from posttrain.core import ranks
from posttrain.core.config import Settings


def keep_start(session: Any, settings: Settings, notes: list[str]) -> None:
    """Before the first update: what was said of every choice, some rows token by token, the machine."""
    from posttrain.data.show import to_json_line

    record, head = session.record, session.head
    facts: dict[str, Any] = {"environment": report(), "trained_share": round(head.trained_share, 4)}
    if not settings.resume:
        facts["notes"] = list(notes)
    record.status(**facts)
    if head.examples:
        record.masks("".join(to_json_line(s, session.spec) + "\n" for s in head.examples))


def keep_end(session: Any) -> None:
    """At the end: the data as it was opened, its hashes, those of the base and of what was made; and the report."""
    from posttrain.eval.report import write_report
    from posttrain.model.checkpoint import writing

    if not ranks.first():
        return
    loader = session.loop.loader
    sources = [{k: s[k] for k in ("spec", "rows", "format", "share", "held_out")} for s in loader.opened.sources]
    model = session.record.folder / "model"
    session.record.status(data=sources, files=loader.files(), base_sha256=session.loop.facts.get("base_hash"),
                          model_sha256=_hashes(model))
    with writing(session.record.folder / "report.html"):
        write_report(session.record.folder)


def _hashes(folder: Path) -> dict[str, str]:
    import hashlib

    found = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
