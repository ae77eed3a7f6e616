"""Text as units that no tokenizer decides: words, and each character of scripts without spaces; loops and variety."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from .intervals import Tally

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
KANA, HANGUL = "\u3040-\u30ff", "\uac00-\ud7af"
_UNIT = re.compile(f"[{HAN}{KANA}]|[^\\W{HAN}{KANA}]+|[^\\w\\s]")
_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.S)
LOOP = 0.5  # an answer repeats itself where at least this share of its 4-grams has stood in it before


def units(text: str) -> list[str]:
    """Words, punctuation marks, and single characters of Chinese and Japanese."""
    return _UNIT.findall(text)


def script_of(texts: Iterable[str]) -> str:
    """`ja`, `ko` or `zh` where more than one letter in fifty is written so, else `latin` (any with spaces).

    The tokenizers for these leave words with spaces as they are, so mixed rows are safe with them and not without.
    """
    counts: Counter[str] = Counter()
    for text in texts:
        for name, signs in (("zh", HAN), ("ja", KANA), ("ko", HANGUL)):
            counts[name] += len(re.findall(f"[{signs}]", text))
        counts["all"] += sum(c.isalpha() for c in text)
    return next((name for name in ("ja", "ko", "zh") if counts[name] > counts["all"] / 50), "latin")


def said(text: str) -> str:
    """An answer as it is judged: without a leading `<think> … </think>` and the space around it."""
    return _THOUGHT.sub("", text, count=1).strip()


def repeats(text: str) -> bool:
    """Is it a loop? seq-rep-4 = 1 − |distinct 4-grams| / |4-grams| (Welleck et al. 2020, §6.1)."""
    words = units(text)
    grams = [tuple(words[i:i + 4]) for i in range(len(words) - 3)]
    return len(grams) > 4 and 1 - len(set(grams)) / len(grams) >= LOOP


def distinct(texts: list[str], n: int) -> Tally | None:
    """distinct-n = |distinct n-grams| / |n-grams| over all answers (Li et al. 2016); None where there is no n-gram.

    Drawing a row twice would look like less variety, so the bootstrap is over jackknife pseudo-values, one per row:
    N·θ − (N−1)·θ without the row (Tukey 1958), moved so that their mean is θ.
    """
    rows = [Counter(tuple(words[i:i + n]) for i in range(len(words) - n + 1)) for words in map(units, texts)]
    whole: Counter[tuple[str, ...]] = Counter()
    for row in rows:
        whole.update(row)
    total, kinds, count = sum(whole.values()), len(whole), len(rows)
    if not total:
        return None
    theta = kinds / total
    without = np.array([(kinds - sum(whole[g] == c for g, c in row.items())) / max(1, total - sum(row.values()))
                        for row in rows])
    pseudo = count * theta - (count - 1) * without
    stats = np.stack([pseudo - pseudo.mean() + theta, np.ones(count)], 1)
    return Tally(stats, lambda s: (s[:, 0] / s[:, 1]).clip(0, 1))
