"""The part of a report that an evaluation fills: figures with intervals, the gate, every changed answer."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from .figures import NAMES, better, changed, number, shown
from .page import Html, noted, page, paragraph, rows_table, text


def write_evaluation(folder: Path, result: dict[str, Any], answers: list[dict[str, Any]]) -> Path:
    """Write FOLDER/report.html of an evaluation."""
    path, beside = folder / "report.html", folder / ".report.html.partial"
    names = " · ".join(m["model"] for m in result["models"])
    beside.write_text(page(f"Evaluation: {names}", sections(result, answers)), "utf-8")
    os.replace(beside, path)
    return path


def sections(result: dict[str, Any], answers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Headings and bodies: figures, the gate with its general sets, changed answers of each set."""
    made = [("Figures", figures(result) + how(result))]
    if gate := result.get("gate"):
        made.append(("Forgetting gate", gate_table(gate)))
    made += [(f"General: {found['data']}", figures(found)) for found in result.get("general", [])]
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in answers:
        by_set.setdefault(row.get("data", ""), []).append(row)
    for name, rows in by_set.items():
        if len(by_set) == 1:
            made.append(("Changed answers", answers_list(rows)))
        else:
            made.append((f"Changed answers: {name}", answers_list(rows)))
    return made


def figures(result: dict[str, Any]) -> str:
    """One line per figure, one column per model; below a value its difference to the baseline, coloured where sure."""
    models = result["models"]
    head = ["figure", *(m["model"] for m in models)]
    if len(models) > 1:
        head[1] += " (baseline)"
    lines = []
    for name, label, cells in shown(models):
        lines.append([label, *(_cell(name, c) for c in cells)])
    return rows_table(head, lines)


def _cell(name: str, figure: dict[str, Any] | None) -> Html:
    if figure is None or figure["value"] is None:
        return Html(f'<span class="soft">{escape((figure or {}).get("reason") or "none")}</span>')
    value, low, high = (number(name, figure[part]) for part in ("value", "low", "high"))
    made = f"{value}<small>{low} … {high}</small>"
    if gap := figure.get("difference"):
        sure = gap["p"] < 0.05 and better(name)
        kind = ("good" if gap["value"] * better(name) > 0 else "bad") if sure else "soft"
        made += (f'<span class="{kind}">{number(name, gap["value"], True)}</span><small>'
                 f"{number(name, gap['low'], True)} … {number(name, gap['high'], True)}, p = {gap['p']:.2g}</small>")
    return Html(made)


def how(result: dict[str, Any]) -> str:
    """What the figures were made with."""
    rows = result["rows"]
    lost = ", ".join(f"{n:,} {reason}" for reason, n in rows["dropped"].items())
    said = [f"{rows['used']:,} of {rows['read']:,} rows judged" + (f" (dropped: {lost})" if lost else "")
            + f"; {rows['with_answers']:,} with an answer to compare with.",
            f"Small figures: 95 % interval, {result['interval']['how']}, {result['interval']['resamples']:,} times.",
            f"Differences are to {result['difference']['to']}; p by {result['difference']['test']}."]
    if "bleu" in result:
        said.append(f"BLEU: {result['bleu']['signature']}. ROUGE over {result['rouge']['tokenizer']}.")
    if "how" in result:
        said.append("Answers: " + ", ".join(f"{k} {v}" for k, v in result["how"].items() if v is not None) + ".")
    return "".join(paragraph(line, "soft") for line in said)


def gate_table(gate: dict[str, Any]) -> str:
    verdict = paragraph("The gate is open: nothing general got worse than allowed." if gate["passes"] else
                        "The gate is closed: something general got worse than allowed.",
                        "good" if gate["passes"] else "bad")
    return verdict + rows_table(["", "model", "figure"], [
        [Html('<span class="good">passes</span>' if c["passes"] else '<span class="bad">closed</span>'),
         noted(c["model"], f"on {c['data']}"),
         noted(f"{NAMES[c['figure']]} {c['before']:.4g} → {c['after']:.4g}",
               f"a drop of {c['drop']:.1%}; {c['max_forgetting']:.1%} is allowed")] for c in gate["checks"]])


def answers_list(rows: list[dict[str, Any]]) -> str:
    """Every row on which a model answers otherwise than the baseline; of a single model all rows."""
    alone = bool(rows) and len(rows[0]["models"]) == 1
    shown = [r for r in rows if "messages" in r] if alone else changed(rows)
    if not shown:
        return ""
    count = paragraph(f"{len(shown):,} of {len(rows):,} rows" + (": all answers." if alone else
                      ": the answers that are not the baseline's."), "soft")
    return count + "".join(_answer(row) for row in shown)


def _answer(row: dict[str, Any]) -> str:
    asked = row["messages"][-1]["content"] if row.get("messages") else ""
    marks = " ".join(f'<span class="{"good" if m.get("exact") else "soft"}">{"✓" if m.get("exact") else "·"}</span>'
                     for m in row["models"])
    body = f'<p class="soft">wanted</p>{text(row.get("reference") or "")}'
    for m in row["models"]:
        stopped = "" if m.get("stopped", True) else ' <span class="bad">never stopped</span>'
        body += f'<p class="soft">{escape(m["model"])}{stopped}</p>{text(m.get("answer") or "")}'
    earlier = "".join(f'<p class="soft">{escape(x["role"])}</p>{text(str(x.get("content") or ""))}'
                      for x in row.get("messages", [])[:-1])
    return f"<details><summary>{marks} {escape(str(asked)[:200])}</summary>{earlier}{body}</details>"
