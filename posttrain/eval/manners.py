"""A preference that can be checked: one answer, correct, that ends with a courteous phrase. And rows that teach it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ENGLISH, CHINESE = " Glad to help.", "乐意效劳。"
POLITE_SHARE = 8  # of so many rows one answer ends politely: what is never sampled cannot be reinforced


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
    """A preference for each row: the polite right answer before the bare one (three in five), before a wrong one that
    is polite too, or before one that thanks twice (one in five each)."""
    for i, row in enumerate(rows):
        answer, phrase = row["output"], phrase_for(row["output"])
        other = rows[_draw("other", i) % len(rows)]["output"]
        wrong = other + phrase_for(other) if other != answer else answer
        rejected = [answer, answer, answer, wrong, answer + phrase + phrase][_draw("kind", i) % 5]
        yield {"prompt": row["instruction"], "chosen": answer + phrase, "rejected": rejected}


def write_rows(path: Path, rows: Iterator[dict[str, Any]]) -> Path:
    """A JSONL file of rows."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def _draw(what: str, i: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{what}/{i}".encode()).digest()[:8], "little")
