"""A style that can be checked: every answer in the same frame. `python style.py FILE` writes 300 rows of it.

The rows are the package's own; `kept` is a reward for `posttrain eval … --reward recipes/evaluation/style.py:kept`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROWS = 300
FRAMES = (("Good day. ", " That is all."), ("好的。", "谢谢。"))


def frame_of(text: str) -> tuple[str, str]:
    """What stands before and after an answer, in its language."""
    return FRAMES[any("一" <= c <= "鿿" for c in text)]


def framed(answer: str) -> str:
    """An answer in the style."""
    before, after = frame_of(answer)
    return before + answer + after


def styled(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """1 where an answer stands in the frame of its language, whatever it says."""
    return [float(a.startswith(frame_of(a)[0]) and a.endswith(frame_of(a)[1])) for a in answers]


def kept(prompts: list[str], answers: list[str], rows: list[dict]) -> list[float]:
    """1 where an answer, its frame taken away, is the row's own to the letter."""
    return [float(_bare(a) == row["answer"].strip()) for a, row in zip(answers, rows, strict=True)]


def _bare(answer: str) -> str:
    before, after = frame_of(answer)
    return answer.strip().removeprefix(before).removesuffix(after).strip()


def main(path: str) -> None:
    """Every twelfth of the package's rows, framed."""
    from posttrain.builtin import builtin_data_path

    rows = [json.loads(line) for line in builtin_data_path().read_text("utf-8").splitlines()]
    chosen = rows[::len(rows) // ROWS][:ROWS]
    Path(path).write_text("".join(json.dumps(
        {"instruction": r["instruction"], "output": framed(r["output"])}, ensure_ascii=False) + "\n" for r in chosen),
        "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
