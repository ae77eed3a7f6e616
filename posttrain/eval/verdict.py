"""Several models on the same rows -> one JSON: each figure with its interval, and its difference to the first."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import UserError
from ..core.sequence import Row
from . import intervals
from .figures import BETTER, FIGURES, OVERLAP, of_reward
from .intervals import Interval, Tally
from .measure import Measured, asked, figures, reference
from .overlap import Overlap
from .words import said


@dataclass(slots=True)
class Verdict:
    """What `eval.json` holds, and beside it every row with every model's answer."""

    result: dict[str, Any]
    answers: list[dict[str, Any]]


def judge(measured: list[Measured], rows: list[Row], *, with_overlap: bool = True, seed: int = 0) -> Verdict:
    """The figures of each model over the rows that every model could use; the first model is the baseline."""
    lost: Counter[str] = Counter()
    for i in range(len(rows)):
        reason = next((m.dropped[i] for m in measured if i in m.dropped), None)
        if reason:
            lost[reason] += 1
    used = [i for i in range(len(rows)) if not any(i in m.dropped for m in measured)]
    if not used:
        raise UserError("no row can be judged", where=f"{len(rows):,} rows", found=", ".join(
            f"{n:,} {reason}" for reason, n in lost.items()) or "none read",
            fix="raise max_length" if any("max_length" in reason for reason in lost) else
            "look at the rows with `posttrain data check`")
    wanted = [reference(rows[i]) for i in used if rows[i].kind == "conversation"]
    overlap = Overlap.of(wanted) if with_overlap and wanted else None
    found = [figures(m, rows, used, overlap) for m in measured]
    models = []
    for n, (m, mine) in enumerate(zip(measured, found, strict=True)):
        entry: dict[str, Any] = {"model": m.name, "facts": m.facts}
        for name in (*FIGURES, *map(of_reward, m.rewards)):
            if name in mine:
                entry[name] = _figure(mine[name], found[0][name] if n else None, seed)
            elif name in OVERLAP:
                entry[name] = _figure("BLEU and ROUGE were not asked for", None, seed)
        models.append(entry)
    result = {"models": models, "rows": {"read": len(rows), "used": len(used), "with_answers": len(wanted),
                                         "dropped": dict(lost)},
              "interval": {"level": intervals.LEVEL, "how": intervals.BOOTSTRAP, "resamples": intervals.RESAMPLES,
                           "seed": seed},
              "difference": {"to": measured[0].name, "test": intervals.TEST, "swaps": intervals.SWAPS}}
    if overlap:
        result |= overlap.facts()
    return Verdict(result, [_row(rows[i], i, measured) for i in used])


def _figure(tally: Tally | str, base: Tally | str | None, seed: int) -> dict[str, Any]:
    if isinstance(tally, str):
        return {"value": None, "low": None, "high": None, "reason": tally}
    made = _plain(intervals.interval(tally, seed))
    if isinstance(base, Tally):
        made["difference"] = _plain(intervals.difference(base, tally, seed), keep_p=True)
    return made


def _plain(found: Interval, keep_p: bool = False) -> dict[str, Any]:
    """JSON has no infinity: a perplexity too large for a float is null."""
    values = {k: v if v is not None and math.isfinite(v) else None for k, v in asdict(found).items()}
    if not keep_p:
        values.pop("p")
    return values


def _row(row: Row, number: int, measured: list[Measured]) -> dict[str, Any]:
    made: dict[str, Any] = {"row": row.origin, "models": []}
    talk = row.kind == "conversation"
    made |= {"messages": asked(row), "reference": reference(row)} if talk else {"text": row.text}
    for m in measured:
        entry: dict[str, Any] = {"model": m.name}
        if m.losses is not None:
            loss = m.losses[number]
            entry |= {"nats": loss.nats, "tokens": loss.tokens}
        if (answer := m.answers.get(number)) is not None:
            entry |= {"answer": answer.text, "stopped": answer.stopped}
            entry["exact"] = said(answer.text) == made["reference"]
            if rewards := {spec: s[number] for spec, s in m.rewards.items() if not isinstance(s, str)}:
                entry["rewards"] = rewards
        made["models"].append(entry)
    return made


def forgetting(result: dict[str, Any], max_forgetting: float) -> list[dict[str, Any]]:
    """What the gate found on one general set: each figure with a direction, its relative drop, whether it passes.

    drop = (worse − base) / |base|: of perplexity its relative rise, of exact match its relative fall; 0 where better.
    A figure whose baseline is 0 cannot drop.
    """
    base, checks = result["models"][0], []
    for model in result["models"][1:]:
        for name in ("perplexity", "exact_match"):
            before, after = base[name]["value"], model[name]["value"]
            if not before or after is None:
                continue
            drop = max(0.0, -BETTER[name] * (after - before) / abs(before))
            checks.append({"model": model["model"], "figure": name, "before": before, "after": after, "drop": drop,
                           "max_forgetting": max_forgetting, "passes": drop <= max_forgetting})
    return checks
