"""A blind vote between two models: who stands on which side, what a vote is worth, and how sure the outcome is."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

from ..core.errors import UserError

# Askell et al. 2021, "A General Language Assistant as a Laboratory for Alignment", section 1.
CRITERIA = ("helpful", "harmless", "honest")
CHOICES = ("a", "b", "tie", "both bad")
COMMENT_MOST = 4000  # characters


def a_is_left(seed: int, messages: list[dict[str, Any]], a: str, b: str) -> bool:
    """Whether model A's answer stands on the left: a fair coin of the seed and the question, the same at every look."""
    text = json.dumps([seed, messages, a, b], ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 0


def read_votes(path: Path) -> list[dict[str, Any]]:
    """The votes of a file, in their order; none where there is no file yet."""
    votes = []
    for number, line in enumerate(path.read_text("utf-8").splitlines() if path.exists() else [], 1):
        try:
            vote = json.loads(line)
            good = all(vote[c] in CHOICES for c in CRITERIA) and isinstance(vote["a"] + vote["b"], str)
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise UserError("this line is no vote", where=f"{path}:{number}", found=line[:80],
                            expected="a line that `posttrain vote` wrote",
                            fix="take the line out, or name another file with --output")
        votes.append(vote)
    return votes


def is_same(vote: dict[str, Any], messages: list[dict[str, Any]], a: str, b: str) -> bool:
    """Whether a vote was cast on this question and these two answers."""
    return vote["messages"] == messages and vote["a"] == a and vote["b"] == b


def make_vote(messages: list[dict[str, Any]], a: str, b: str, models: tuple[str, str], left: bool,
              cast: dict[str, Any]) -> dict[str, Any]:
    """A vote cast on sides (`left`, `right`, `tie`, `both bad`) as a row on models: also a preference row.

    `verdict` is the model that more criteria chose, else tie (`posttrain dpo` drops ties and counts them).
    UserError where a choice is missing or is none of the four.
    """
    sides = {"left": "a" if left else "b", "right": "b" if left else "a", "tie": "tie", "both bad": "both bad"}
    choices = {c: sides.get(cast.get(c)) for c in CRITERIA}
    comment = cast.get("comment", "")
    if missing := [c for c, choice in choices.items() if choice is None]:
        raise UserError("the vote is not complete", where=", ".join(missing), expected="left, right, tie or both bad")
    if not isinstance(comment, str) or len(comment) > COMMENT_MOST:
        raise UserError("the comment is no text, or too long", expected=f"at most {COMMENT_MOST:,} characters")
    for_a, for_b = (sum(choice == model for choice in choices.values()) for model in ("a", "b"))
    verdict = "a" if for_a > for_b else "b" if for_b > for_a else "tie"
    return {"messages": messages, "a": a, "b": b, "verdict": verdict, **choices, "comment": comment,
            "model_a": models[0], "model_b": models[1], "left": "a" if left else "b"}


def outcome(votes: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per criterion, and for the verdict: counts, B's win rate with its 95 % interval, and a sign test's p.

    Ties do not count in rate and test; all three are None where nobody won.
    """
    found = {}
    for name in (*CRITERIA, "verdict"):
        counts = {choice: sum(vote[name] == choice for vote in votes) for choice in CHOICES}
        rate, low, high = wilson(counts["b"], counts["a"] + counts["b"])
        found[name] = counts | {"b_wins": rate, "low": low, "high": high, "p": sign_test(counts["a"], counts["b"])}
    return found


def wilson(wins: int, of: int, z: float = 1.959964) -> tuple[float | None, float | None, float | None]:
    """A share with its score interval (Wilson 1927): (wins/of, low, high), Nones where `of` is 0.

        centre ± z · √(p(1 − p)/n + z²/4n²) / (1 + z²/n),  centre = (p + z²/2n) / (1 + z²/n)
    """
    if not of:
        return None, None, None
    p, scale = wins / of, 1 + z * z / of
    centre = (p + z * z / (2 * of)) / scale
    half = z * math.sqrt(p * (1 - p) / of + z * z / (4 * of * of)) / scale
    return p, max(0.0, centre - half), min(1.0, centre + half)


def sign_test(a: int, b: int) -> float | None:
    """Two-sided exact sign test: the chance of a split so uneven if both were equally good (Arbuthnot 1710)."""
    if not a + b:
        return None
    tail = sum(math.comb(a + b, k) for k in range(min(a, b) + 1))
    return min(1.0, 2 * tail / 2 ** (a + b))
