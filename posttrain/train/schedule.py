"""The learning rate of each update."""

from __future__ import annotations

import math


def learning_rate(step: int, total: int, peak: float, kind: str, warmup: int) -> float:
    """Rate of update `step` (1-based) out of `total`.

    Rises linearly over `warmup` updates to `peak`, then falls to 0 after the last one by a half cosine
    (Loshchilov & Hutter 2017, eq. 5, one cycle) or linearly, or stays. Unlike schedules that start at 0, no update
    is made with a rate of 0.
    """
    if step <= warmup:
        return peak * step / warmup
    if kind == "constant":
        return peak
    done = (step - warmup - 1) / max(1, total - warmup)
    return peak * (0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done)


def warmup_updates(total: int, ratio: float, steps: int | None) -> int:
    """Updates in which the rate rises: `steps` where set, else the ceiling of ratio × total."""
    return min(total, steps if steps is not None else math.ceil(ratio * total))
