"""`report.html` of a run: everything that its folder tells, on one page."""

from __future__ import annotations

import json
import os
import re
from html import escape
from pathlib import Path
from typing import Any

from ..core.config import Settings
from ..data.show import Token
from ..data.show_html import legend_html, mask_html
from .curves import curve
from .doctor import Facts, examine
from .page import Html, noted, page, paragraph, rows_table, text
from .report_eval import sections as evaluation_sections

_REASON = re.compile(r"(\w+) = (.*?): (.*)", re.S)
MOST_STEPS = 12  # validations whose samples are shown, the first and the last among them


def write_report(folder: Path) -> Path:
    """Write FOLDER/report.html from what lies in the folder; written beside, then renamed."""
    path, beside = folder / "report.html", folder / ".report.html.partial"
    beside.write_text(run_page(folder), "utf-8")
    os.replace(beside, path)
    return path


def run_page(folder: Path) -> str:
    """The page of a run."""
    run = Facts(folder)
    status = run.read("run.json")
    state = status.get("status", "not begun")
    if state == "exporting":  # this page is written before the last word of a run: that it is finished
        state = "finished"
    lead = paragraph(f"{run.config.get('objective', 'sft')}, method {run.config.get('method')}, model "
                     f"{run.config.get('model')}: {state} at update "
                     f"{status.get('step', 0)}.")
    judged = evaluations(run)
    figures = [part for part in judged if not part[0].startswith("Changed")]
    parts = [("Findings", findings(folder)), ("Before and after", before_after(status)), *figures,
             ("Curves", curves(run)), ("Answers during training", samples(run)), ("Ledger", ledger(run)),
             ("Data", data(status)), ("Which tokens are trained", masks(run)), ("Memory", memory(status)),
             ("Settings", settings(run, status)), ("Environment", environment(status)),
             *(part for part in judged if part not in figures)]
    return page(folder.name, parts, lead)


def findings(folder: Path) -> str:
    """What `posttrain doctor` says."""
    troubles = examine(folder)
    if not troubles:
        return paragraph("No trouble found.", "good")
    made = ""
    for t in troubles:
        seen = "".join(f"<li>{escape(e)}</li>" for e in t.evidence)
        made += f'<h3 class="bad">{escape(t.name)}</h3><ul>{seen}</ul>' + paragraph(f"Change: {t.change}.")
    return made


def before_after(status: dict[str, Any]) -> str:
    """The validation loss."""
    before, after = status.get("eval_loss_before"), status.get("eval_loss")
    if before is None or after is None:
        return ""
    change = f"{after / before - 1:+.1%}" if before else ""
    return rows_table(["held-out rows", "before", "after", "change"],
                      [["validation loss (nats per unit)", f"{before:.4f}", f"{after:.4f}", change]])


def evaluations(run: Facts) -> list[tuple[str, str]]:
    """Figures and changed answers of the evaluation that lies in the run's own folder."""
    path = run.folder / "eval.json"
    if not path.is_file():
        return []
    return evaluation_sections(json.loads(path.read_text("utf-8")), run.lines("answers.jsonl"))


def curves(run: Facts) -> str:
    def series(name: str) -> dict[int, float]:
        return {m["step"]: float(m[name]) for m in run.metrics if m.get(name) is not None}

    validation = dict(run.validations)
    return (curve("Loss", {"training": series("loss"), "validation": validation}, frozenset({"validation"}))
            + curve("Learning rate", {"learning rate": series("learning_rate")})
            + curve("Gradient norm, before clipping", {"norm": series("grad_norm")})
            + curve("Sampled answers that end by themselves", {"share": series("eval_stops")}, frozenset({"share"})))


def samples(run: Facts) -> str:
    """The answers to each prompt, update by update."""
    by_row: dict[str, list[dict[str, Any]]] = {}
    for line in run.lines("samples.jsonl"):
        if "reference" in line:
            by_row.setdefault(line["row"], []).append(line)
    made = []
    for row, lines in by_row.items():
        jump = -(-len(lines) // MOST_STEPS)
        shown = lines[::-1][::jump][::-1]
        shown = shown if shown[0] is lines[0] else [lines[0], *shown]
        body = rows_table(["update", "answer"], [[x["step"], Html(text(x["answer"]) + (
            "" if x["stopped"] else '<span class="bad">never stopped</span>'))] for x in shown])
        made.append(f"<h3>{escape(row)}</h3>{text(lines[0]['prompt'])}<p class='soft'>wanted</p>"
                    f"{text(lines[0]['reference'])}{body}")
    return "".join(made)


def ledger(run: Facts) -> str:
    found = run.read("ledger.json")
    if not found:
        return ""
    rows, tokens = found["rows"], found["tokens"]
    dropped = sum(rows["dropped"].values())
    lines = [["rows", f"{rows['read']:,} read", f"{rows['trained']:,} trained ({rows['cut']:,} of them cut)",
              f"{dropped:,} dropped"],
             ["tokens", f"{tokens['rendered']:,} rendered",
              f"{tokens['trained']:,} trained + {tokens['masked']:,} masked",
              f"{tokens['cut']:,} cut + {tokens['dropped']:,} dropped"]]
    reasons = rows_table(["why rows were dropped", "rows"], [[k, v] for k, v in rows["dropped"].items()])
    return rows_table(["", "all", "kept", "lost"], lines) + reasons


def data(status: dict[str, Any]) -> str:
    sources = [[s["spec"], s["rows"], s["format"], "" if s["share"] is None else f"{s['share']:.0%} of every update",
                s["held_out"] or ""] for s in status.get("data", [])]
    files = [[f["path"], f["rows"], f["sha256"]] for f in status.get("files", [])]
    return (rows_table(["data", "rows", "format", "share", "held out"], sources)
            + rows_table(["file", "rows", "SHA-256"], files))


def masks(run: Facts) -> str:
    if not run.masks:
        return ""
    made = [f"<h3>{escape(m['origin'])}</h3>{mask_html([Token(**t) for t in m['tokens']])}" for m in run.masks]
    return legend_html() + "".join(made)


def memory(status: dict[str, Any]) -> str:
    """What was foreseen beside what was measured."""
    names = {"planned": "planned", "rehearsed": "at most in the rehearsal before the first update",
             "measured": "at most in the run"}
    found = status.get("memory") or {}
    return rows_table(["memory", "GB"], [[label, f"{found[name] / 1e9:.2f}"] for name, label in names.items()
                                         if isinstance(found.get(name), int | float)])


def settings(run: Facts, status: dict[str, Any]) -> str:
    """Every key: first those that were set or chosen, with the reason where the program chose."""
    reasons = {m[1]: m[3] for note in status.get("notes", []) if (m := _REASON.fullmatch(note))}
    chosen = {m[1]: m[2] for note in status.get("notes", []) if (m := _REASON.fullmatch(note))}
    defaults = {f.alias or name: f.get_default(call_default_factory=True) for name, f in Settings.model_fields.items()}
    first, rest = [], []
    for key, value in run.config.items():
        why = reasons.get(key, "")
        shown = chosen.get(key, json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value)
        if why or value != defaults.get(key):
            first.append([key, noted(str(shown), why or "set")])
        else:
            rest.append([key, str(shown)])
    others = [[k, noted(v, reasons[k])] for k, v in chosen.items() if k not in run.config]
    return (rows_table(["key", "value, and why"], first + others)
            + f"<details><summary>{len(rest)} keys at their defaults</summary>{rows_table(['key', 'value'], rest)}"
              "</details>")


def environment(status: dict[str, Any]) -> str:
    found = status.get("environment") or {}
    rows = [[part, name, ", ".join(map(str, v)) if isinstance(v, list) else str(v)]
            for part, values in found.items() for name, v in values.items()]
    hashes = [["base", status["base_sha256"]]] if isinstance(status.get("base_sha256"), str) else []
    hashes += [[f"model/{name}", value] for name, value in (status.get("model_sha256") or {}).items()]
    return rows_table(["", "", ""], rows) + rows_table(["weights", "SHA-256"], hashes)
