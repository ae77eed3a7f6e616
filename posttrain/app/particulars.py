"""What a run's report shows and no other file keeps: reasons, some masks, the data with its hashes, the machine."""

from __future__ import annotations

import json
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


def keep_end(session: Any, judging: bool = False) -> dict[str, Any] | None:
    """At the end: the data as it was opened, its hashes, those of the base and of what was made; and the report.

    `judging`: how the trained reward model judges the held-out pairs of all processes -> that, kept in reward.json.
    """
    from posttrain.eval.preferences import judge_pairs
    from posttrain.eval.report import write_report
    from posttrain.model.checkpoint import writing

    judged = judge_pairs(session.loop.models, session.loop.held) if judging else None
    if not ranks.first():
        return judged
    if judged is not None:
        with writing(session.record.folder / "reward.json"):
            (session.record.folder / "reward.json").write_text(json.dumps(judged, indent=1) + "\n", "utf-8")
    loader = session.loop.loader
    sources = [{k: s[k] for k in ("spec", "rows", "format", "share", "held_out")} for s in loader.opened.sources]
    model = session.record.folder / "model"
    session.record.status(data=sources, files=loader.files(), base_sha256=session.loop.facts.get("base_hash"),
                          model_sha256=_hashes(model))
    with writing(session.record.folder / "report.html"):
        write_report(session.record.folder)
    return judged


def _hashes(folder: Path) -> dict[str, str]:
    import hashlib

    found = {}
    for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
