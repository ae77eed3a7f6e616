"""The figures of an evaluation: their order, how people call and read them, and which way is better. No torch here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROUGES = ("rouge1", "rouge2", "rougeL")
LOSS = ("answer_loss", "perplexity", "bits_per_byte")
OVERLAP = ("bleu", *ROUGES)
ANSWERS = ("exact_match", *OVERLAP, "stops", "repeats", "length", "distinct_1", "distinct_2")
FIGURES = (*LOSS, *ANSWERS)
BETTER = dict.fromkeys(("exact_match", *OVERLAP, "stops"), 1) | dict.fromkeys((*LOSS, "repeats"), -1)
NAMES = {"answer_loss": "answer loss (nats per token)", "perplexity": "perplexity", "bits_per_byte": "bits per byte",
         "exact_match": "answers exactly", "bleu": "BLEU", "rouge1": "ROUGE-1", "rouge2": "ROUGE-2",
         "rougeL": "ROUGE-L", "stops": "stops by itself", "repeats": "repeats itself", "length": "characters an answer",
         "distinct_1": "distinct-1", "distinct_2": "distinct-2"}
SHARES = frozenset({"exact_match", "stops", "repeats"})


def of_reward(spec: str) -> str:
    """The name under which a model's figures hold its mean score by a reward."""
    return f"reward: {spec}"


def better(name: str) -> int:
    """1 where more is better, -1 where less is, 0 where neither."""
    return 1 if name.startswith(of_reward("")) else BETTER.get(name, 0)


def shown(models: list[dict[str, Any]]) -> Iterator[tuple[str, str, list[dict[str, Any] | None]]]:
    """(name, label, one figure per model) of every figure that some model has, rewards last."""
    rewards = [name for name in models[0] if name.startswith(of_reward(""))]
    for name in (*FIGURES, *rewards):
        cells = [m.get(name) for m in models]
        if any(c and (c["value"] is not None or name in rewards) for c in cells):
            yield name, NAMES.get(name, name), cells


def number(name: str, value: float | None, sign: bool = False) -> str:
    """A figure as people read it: shares in percent, the rest with three or four digits."""
    if value is None:
        return "?"
    plus = "+" if sign and value >= 0 else ""
    if name in SHARES:
        return f"{plus}{value:.1%}"
    if name == "length":
        return f"{plus}{value:.1f}"
    return f"{plus}{value:.3f}" if abs(value) < 100 else f"{plus}{value:,.0f}"


def changed(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows on which some model answers otherwise than the first."""
    return [a for a in answers if len({m.get("answer") for m in a["models"]}) > 1]
