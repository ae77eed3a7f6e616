"""Sums of two numbers of two digits, whose answers can be checked: rows for `posttrain grpo`.

`python sums.py FOLDER` writes start.jsonl (to fine-tune on first), prompts.jsonl (what GRPO asks) and held_out.jsonl.
"""

from __future__ import annotations

import json
import random
import sys
from itertools import product
from pathlib import Path

ASKED = ("Calculate {s}", "What is {s}?", "Work out {s}.", "How much is {s}?")
START, HELD_OUT = 1500, 300


def sums() -> list[dict[str, str]]:
    """All sums of two numbers from 10 to 99, in an order and in wordings that never change."""
    made = random.Random("sums")
    found = [(f"{a}+{b}", a + b) for a, b in product(range(10, 100), repeat=2)]
    made.shuffle(found)
    return [{"instruction": made.choice(ASKED).format(s=s), "output": f"{s}={v}."} for s, v in found]


def parts() -> dict[str, list[dict[str, str]]]:
    """The rows of each file; no sum stands in two of them."""
    rows = sums()
    return {"held_out": rows[:HELD_OUT], "start": rows[HELD_OUT:HELD_OUT + START], "prompts": rows[HELD_OUT + START:]}


def main(folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, rows in parts().items():
        Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
