"""A style that can be checked: every answer ends in the same words. `python style.py FILE` writes 600 rows of it.

The rows are the package's own; `styled` and `kept` are rewards for `posttrain eval … --reward style.py:kept`.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

EACH = 30  # rows of each kind, of which there are twenty: a kind with few of them keeps its old form
ENDINGS = (" That is all.", "谢谢。")


def ending_of(text: str) -> str:
    """What ends an answer, in its language."""
    return ENDINGS[any("一" <= c <= "鿿" for c in text)]


def styled(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """1 where an answer ends in the words of its language, once, whatever it says before them."""
    return [float(a.strip().endswith(ending_of(a)) and a.count(ending_of(a)) == 1) for a in answers]


def kept(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """1 where an answer, its ending taken away, is the row's own to the letter."""
    return [float(_bare(a) == row["answer"].strip()) for a, row in zip(answers, rows, strict=True)]


def _bare(answer: str) -> str:
    return answer.strip().removesuffix(ending_of(answer)).strip()


def main(path: str) -> None:
    """The first EACH rows of every kind of the package's rows, in the style."""
    from posttrain.builtin import builtin_data_path

    seen: Counter[str] = Counter()
    with Path(path).open("w", encoding="utf-8") as out:
        for row in map(json.loads, builtin_data_path().read_text("utf-8").splitlines()):
            seen[row["kind"]] += 1
            if seen[row["kind"]] <= EACH:
                answer = row["output"] + ending_of(row["output"])
                out.write(json.dumps({"instruction": row["instruction"], "output": answer}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
