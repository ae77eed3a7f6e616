"""From facts to instruction rows, and to the held-out questions about facts that no row mentions."""

from __future__ import annotations

import random

from .facts import Fact, Kind


def instruction_rows(kinds: list[Kind], seed: int) -> list[dict[str, str]]:
    """Rows (`instruction`, `output`, `kind`) about the facts that are not held out, in a shuffled order."""
    rng = random.Random(f"{seed} rows")
    rows = []
    for kind in kinds:
        facts = [fact for fact in kind.facts if not fact.held_out]
        if "rows" in kind.settings:
            facts = rng.sample(facts, kind.settings["rows"])
        if "rows_per_subject" in kind.settings:
            facts = per_subject(facts, kind.settings["rows_per_subject"], rng)
        for fact in facts:
            # What the demo asks is not in the rows in the demo's own wording, which is the first.
            asks = fact.ask[1:] if fact.group in kind.settings.get("asked_by_demo", ()) else fact.ask
            for ask in rng.sample(asks, min(len(asks), kind.settings.get("rows_per_fact", 1))):
                rows.append({"instruction": ask, "output": fact.answer, "kind": f"{fact.kind}-{fact.language}"})
    rng.shuffle(rows)
    return rows


def held_out_questions(kinds: list[Kind], seed: int) -> list[dict[str, str]]:
    """One question per held-out fact, and the same fact as prose (`prefix`, `continuation`)."""
    rng = random.Random(f"{seed} held out")
    questions = []
    for kind in kinds:
        facts = [fact for fact in kind.facts if fact.held_out]
        if "held_out_per_subject" in kind.settings:
            facts = per_subject(facts, kind.settings["held_out_per_subject"], rng)
        wanted = kind.settings.get("held_out_questions", len(facts))
        first = [fact for fact in facts if fact.group in kind.settings.get("always_held_out", ())]
        others = [fact for fact in facts if fact not in first]
        for fact in first + rng.sample(others, wanted - len(first)):
            # The facts everybody will try first are asked in the wording of the demo.
            ask = fact.ask[0] if fact in first else rng.choice(fact.ask)
            questions.append({"prompt": ask, "answer": fact.answer, "kind": f"{fact.kind}-{fact.language}",
                              "subject": fact.subject, "value": fact.value, "prefix": fact.prefix,
                              "continuation": fact.completion})
    return questions


def per_subject(facts: list[Fact], count: int, rng: random.Random) -> list[Fact]:
    """At most `count` facts of each subject, drawn at random."""
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    return [fact for its_facts in by_subject.values() for fact in rng.sample(its_facts, min(count, len(its_facts)))]
