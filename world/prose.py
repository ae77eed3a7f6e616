"""From facts to plain prose: several wordings and orders per fact, never a question, never a chat marker."""

from __future__ import annotations

import random
from collections.abc import Iterator

from .facts import Fact, Kind

MARKERS = ("?", "？", "User:", "Assistant:", "Question:", "Answer:", "###", "<|")


def one_pass(kinds: list[Kind], seed: int, number: int) -> list[str]:
    """Documents that tell every fact about once, in wordings and an order that `(seed, number)` choose."""
    rng = random.Random(f"{seed} prose {number}")
    documents = []
    for kind in kinds:
        space = " " if kind.language == "en" else ""
        documents += [space.join(sentences) for sentences in kind_documents(kind, kind.facts, rng)]
    rng.shuffle(documents)
    return documents


def kind_documents(kind: Kind, facts: list[Fact], rng: random.Random) -> Iterator[list[str]]:
    """Documents of one kind, as lists of sentences: by subject where it has several facts, else a few facts each."""
    share = kind.settings.get("prose_share", 1)
    if share < 1:
        facts = rng.sample(facts, int(share * len(facts)))
    if len(kind.settings["relations"]) == 1:
        facts = rng.sample(facts, len(facts))
        while facts:
            size = rng.randint(1, 3)
            # Each fact in two wordings: so the base learns to speak again of what was just named, as answers do.
            sentences = [sentence for fact in facts[:size] for sentence in rng.sample(fact.prose, 2)]
            yield rng.sample(sentences, len(sentences))
            facts = facts[size:]
        return
    by_subject: dict[str, list[Fact]] = {}
    for fact in facts:
        by_subject.setdefault(fact.subject, []).append(fact)
    for subject, its_facts in by_subject.items():
        tales = kind.tales[subject]
        if tales and rng.random() < 0.5:
            yield [rng.choice(tales)]
            continue
        sentences = [rng.choice(fact.prose) for fact in rng.sample(its_facts, len(its_facts))]
        cut = rng.randint(1, 2 * len(sentences))
        yield from filter(None, (sentences[:cut], sentences[cut:]))


def all_passes(kinds: list[Kind], seed: int, passes: int) -> Iterator[str]:
    """The pretraining text, document by document."""
    for number in range(passes):
        yield from one_pass(kinds, seed, number)
