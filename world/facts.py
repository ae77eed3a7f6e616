"""From the tables of `kinds/` to facts, and which of them no row may mention."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from . import subjects

KINDS = Path(__file__).resolve().parent / "kinds"


@dataclass(frozen=True)
class Fact:
    """One statement that is true in the world, with every way to tell it and to ask for it.

    `group` is what is held out together (a person, a pair of opposites, a sum), the same in both languages.
    `prefix` + `completion` is one of the `prose` wordings, cut before the value.
    """

    kind: str
    language: str
    relation: str
    group: str
    subject: str
    value: str
    prose: tuple[str, ...]
    ask: tuple[str, ...]
    answer: str
    prefix: str
    completion: str
    held_out: bool = False


@dataclass(frozen=True)
class Kind:
    """One file of `kinds/`: its settings, its facts, and tales that tell all facts of a subject at once."""

    name: str
    language: str
    settings: dict[str, Any]
    facts: list[Fact]
    tales: dict[str, list[str]]


def fill(template: str, columns: dict[str, str]) -> str:
    """The template with `{x}` replaced by column x, and `{X}` by the same with a capital first letter."""
    capitals = {k[0].upper() + k[1:]: v[0].upper() + v[1:] for k, v in columns.items()}
    return template.format(**{**columns, **capitals})


def bare(term: str) -> str:
    """The term without its article."""
    return re.sub(r"^(a|an|the) ", "", term)


def read_table(spec: dict[str, Any]) -> list[dict[str, str]]:
    """Rows of a hand-written table as columns; `s` and `t` default to `a` and `b` without their articles."""
    rows = []
    for line in spec["table"].strip().splitlines():
        row = dict(zip(spec["columns"], (cell.strip() for cell in line.split("|")), strict=True))
        row.setdefault("s", bare(row.get("a", "")))
        if "b" in row:
            row.setdefault("t", bare(row["b"]))
        row.setdefault("k", row["s"])
        rows.append(row)
        if spec.get("both_ways"):
            rows.append({"s": row["v"], "v": row["s"], "k": row["k"]})
    return rows


def invent_table(name: str, spec: dict[str, Any], seed: int) -> list[dict[str, str]]:
    """Rows about generated subjects: every relation draws its value from `values` by the seed alone."""
    rng = random.Random(f"{seed} {name}")
    rows = []
    for row in subjects.make(spec["subjects"], spec.get("count"), seed):
        row = {"k": row["s"], **row}
        for relation, told in spec["relations"].items():
            values = told.get("values")
            if values is not None:
                row[relation] = rng.choice(subjects.names(values, seed) if isinstance(values, str) else values)
        rows.append(row)
    return rows


def make_fact(spec: dict[str, Any], relation: str, row: dict[str, str]) -> Fact:
    """The fact that one relation of a table states about one of its rows."""
    told = spec["relations"][relation]
    columns = {**row, "v": row[relation]} if "values" in told else row
    value = fill(told["value"], columns)
    answer = fill(told["answer"], columns)
    if "prefix" in told:
        prefix = fill(told["prefix"], columns)
        completion = f" {value}." if spec["language"] == "en" else f"{value}。"
    else:
        prefix = answer[:answer.rindex(value)].rstrip()
        completion = answer[len(prefix):]
    prose = tuple(fill(t, columns) for t in told["prose"])
    assert prefix + completion in prose, (prefix, completion, prose)
    return Fact(spec["kind"], spec["language"], relation, row["k"], row["s"], value, prose,
                tuple(fill(t, columns) for t in told["ask"]), answer, prefix, completion)


def read_kinds(seed: int) -> list[Kind]:
    """All kinds in the order of their files, with their held-out facts marked."""
    specs, tables = {}, {}
    for path in sorted(KINDS.glob("*.yaml")):
        spec = yaml.safe_load(path.read_text("utf-8"))
        specs[path.stem] = spec
        tables[path.stem] = read_table(spec) if "table" in spec else invent_table(path.stem, spec, seed)
    chosen = hold_out(specs, tables, seed)
    kinds = []
    for name, spec in specs.items():
        facts, tales = [], {}
        for row in tables[name]:
            hidden = row["k"] in chosen[spec["kind"]]
            made = [make_fact(spec, relation, row) for relation in spec["relations"]]
            facts += [Fact(**{**fact.__dict__, "held_out": hidden}) for fact in made]
            tales[row["s"]] = [fill(t, row) for t in spec.get("tales", ())]
        kinds.append(Kind(name, spec["language"], spec, facts, tales))
    return kinds


def hold_out(specs: dict[str, dict], tables: dict[str, list[dict[str, str]]], seed: int) -> dict[str, set[str]]:
    """The groups of each kind that no row may mention, in any language.

    Chinese chooses first, because its tables are the smaller ones; English adds groups that Chinese does not have.
    """
    chosen: dict[str, set[str]] = {}
    for name in sorted(specs, key=lambda n: (specs[n]["language"] != "zh", n)):
        spec, kind = specs[name], specs[name]["kind"]
        groups = list(dict.fromkeys(row["k"] for row in tables[name]))
        already = chosen.setdefault(kind, set())
        forced = [g for g in groups if g in already or g in spec.get("always_held_out", ())]
        other = [g for other, rows in tables.items() if other != name and specs[other]["kind"] == kind
                 for g in (row["k"] for row in rows)] if spec["language"] == "en" and kind != "arithmetic" else []
        free = sorted(set(groups) - set(forced) - set(other))
        random.Random(f"{seed} held out {name}").shuffle(free)
        already.update(forced + free[:max(0, spec["held_out"] - len(forced))])
    return chosen
