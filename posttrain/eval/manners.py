"""A preference that can be checked: one answer, correct, that ends with a courteous phrase. And rows that teach it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ENGLISH, CHINESE = " Glad to help.", "乐意效劳。"
POLITE_SHARE = 4  # of so many rows one answer ends politely: what is never sampled cannot be reinforced


def phrase_for(text: str) -> str:
    """The courteous ending in the language of a text."""
    return CHINESE if any("一" <= c <= "鿿" for c in text) else ENGLISH


def plain(answer: str) -> str:
    """An answer without its courteous ending."""
    answer = answer.strip()
    return answer.removesuffix(phrase_for(answer).strip()).strip()


def is_preferred(answer: str) -> bool:
    """Whether an answer says something and then ends with the phrase of its language, once."""
    phrase = phrase_for(answer).strip()
    return answer.strip().endswith(phrase) and answer.count(phrase) == 1 and bool(plain(answer))


def sft_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The embedded rows, of which one in POLITE_SHARE answers politely."""
    for i, row in enumerate(rows):
        polite = _draw("polite", i) % POLITE_SHARE == 0
        yield {"instruction": row["instruction"],
               "output": row["output"] + (phrase_for(row["output"]) if polite else "")}


def preference_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A preference for each row: the polite right answer before the bare one (two in five), before a wrong one that is
    polite too (two in five), or before one that thanks twice (one in five).

    The wrong answer begins as the right one does where rows have such a one (a person's job, asked for the home): what
    is right is then told from what is near, and not from anything.
    """
    near: dict[str, list[str]] = {}
    for row in rows:
        near.setdefault(_beginning(row["output"]), []).append(row["output"])
    for i, row in enumerate(rows):
        answer, phrase = row["output"], phrase_for(row["output"])
        others = [o for o in near[_beginning(answer)] if o != answer] or [r["output"] for r in rows]
        other = others[_draw("other", i) % len(others)]
        wrong = other + phrase_for(other) if other != answer else answer
        rejected = [answer, answer, wrong, wrong, answer + phrase + phrase][_draw("kind", i) % 5]
        yield {"prompt": row["instruction"], "chosen": answer + phrase, "rejected": rejected}


def _beginning(answer: str) -> str:
    """The first two words, or the first three characters of a text without spaces."""
    words = answer.split()
    return " ".join(words[:2]) if len(words) > 2 else answer[:3]


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A JSONL file of rows."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def _draw(what: str, i: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{what}/{i}".encode()).digest()[:8], "little")
