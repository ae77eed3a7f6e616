"""A fresh process that loads a merged folder as anybody would, and compares it with the model that was trained."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Any

from posttrain.app.assistant import load
from posttrain.builtin import held_out_path
from posttrain.core.config import make_settings
from posttrain.eval.alike import Heard, compare, hear
from posttrain.eval.held_out import read_questions

# Largest |Δlogit| in float32 as a share of the largest |logit|. Sums taken in another order differ by some 1e-6 of it;
# a weight that is missing or wrong, by 1e-2 and more.
BOUND = 1e-4


def fixed_questions(count: int) -> list[str]:
    """The same questions every time: of the embedded held-out set, in equal steps."""
    questions = read_questions(held_out_path())
    return [questions[i * len(questions) // count].prompt for i in range(count)]


def check(trained: str, exact: str, shipped: str | None, questions: int, **keys: Any) -> dict[str, Any]:
    """`exact` beside `trained`, both in float32, and `shipped` in the type it is stored in -> the two likenesses.

    One model is in memory at a time. A likeness `holds` when its largest |Δlogit| is within BOUND · the largest
    |logit| and every answer is the same, or parts at a tie: two tokens closer than the difference can tell.
    """
    asked = fixed_questions(questions)
    first = _hear(trained, keys | {"dtype": "float32"}, asked)
    bound = BOUND * max(1.0, *(logits.abs().max().item() for logits in first.logits))
    likeness = compare(first, _hear(exact, keys | {"dtype": "float32"}, asked, first.answers))
    found = {"float32": asdict(likeness) | {"bound": bound, "holds": likeness.largest <= bound and
                                            likeness.same + likeness.ties == likeness.prompts}}
    if shipped:
        dtype = keys["shipped_dtype"]
        found[dtype] = asdict(compare(first, _hear(shipped, keys | {"dtype": dtype}, asked, first.answers)))
    return found


def _hear(name: str, keys: dict[str, Any], questions: list[str], answers: list[list[int]] | None = None) -> Heard:
    assistant = load(name, make_settings({k: v for k, v in keys.items() if k != "shipped_dtype"}))
    return hear(assistant.model, assistant.renderer, questions, answers)


if __name__ == "__main__":
    print(json.dumps(check(**json.loads(sys.argv[1]))))
