"""A loss or gradient that is no number: stop before the update, and find the rows that do it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from ..core import ranks
from ..core.errors import UserError
from ..core.pack import Pack
from ..model.checkpoint import writing
from .update import accumulate

OFFENDING = "offending_rows.jsonl"


def finite(*numbers: float) -> bool:
    return all(n - n == 0 for n in numbers)


def blame(loop: Any, packs: list[Pack], step: int, loss: float, norm: float) -> UserError:
    """The error for an update whose loss or gradient is not finite, after the rows that do it lie in the run folder.

    Each row of the update is run alone, forward and backward, with the weights as they were: the ones whose own loss
    or gradient is not finite are to blame; where none is, their sum overflows, and all of them are written down.
    Several processes run the same row, for all but the first an idle one: none waits for another (test_ranks.py).
    """
    own = [row.to("cpu") for pack in packs if not pack.idle for row in atoms(pack)]
    rows = [row for rows in ranks.gathered(own) for row in rows]
    made = [(row, *_alone(loop, row, step)) for row in rows]
    loop.optimizer.begin(1)
    guilty = [m for m in made if not finite(*m[1:])]
    path = loop.record.folder / OFFENDING
    if ranks.first():
        with writing(path), path.open("w", encoding="utf-8") as file:
            for row, row_loss, row_norm in guilty or made:
                file.write(json.dumps(_line(loop, row, row_loss, row_norm, step), ensure_ascii=False) + "\n")
    ranks.wait()  # whichever process tells it, the file is there
    origins = list(dict.fromkeys(o for row, *_ in guilty or made for o in row.origins))
    shown = ", ".join(origins[:8]) + (f" and {len(origins) - 8} more" if len(origins) > 8 else "")
    what = "the loss" if not finite(loss) else "the gradient"
    if 0 < len(guilty) < len(made):
        found, fix = f"{len(guilty)} of its {len(made)} rows do it alone", _look(path, origins[0])
    else:
        found = "each of its rows does it alone" if guilty else "none of its rows does it alone"
        fix = f"lower learning_rate, or set dtype: float32; the rows are in {path}"
    return UserError(f"{what} of update {step} is not finite; the weights are as before it", where=shown,
                     found=f"loss {loss}, gradient norm {norm}: {found}", fix=fix)


def _look(path: Path, origin: str) -> str:
    file, _, line = origin.rpartition(":")
    return (f"look at these rows in {path}, or with `posttrain data show {quote(file)} --row {line}`; mend or remove "
            "them, and go on with resume and allow_changes")


def _alone(loop: Any, row: Pack, step: int) -> tuple[float, float]:
    """Loss and gradient norm of an update of this row alone; zeros where nothing of it is trained."""
    if not float(loop.objective.size(row)):
        return 0.0, 0.0
    loop.optimizer.begin(1)
    row = row if ranks.first() else replace(row, idle=True)
    means = accumulate(loop.models, loop.objective, [row], loop.settings.seed, step)
    loop.optimizer.sum_over_processes()
    return means["loss"], float(loop.optimizer.norm())


def atoms(pack: Pack) -> Iterator[Pack]:
    """Each atom of a pack as a pack of its own, with its part of every column."""
    for s, e in zip(pack.atoms, pack.atoms[1:], strict=False):
        a, b = pack.bounds[s], pack.bounds[e]
        sizes = {len(pack.ids_T): (a, b), len(pack.origins): (s, e)}
        columns = {name: c[slice(*sizes[len(c)])] for name, c in pack.columns.items()}
        yield Pack(pack.ids_T[a:b], pack.positions_T[a:b], pack.targets_T[a:b], pack.weights_T[a:b],
                   [x - a for x in pack.bounds[s:e + 1]], pack.origins[s:e], pack.sources[s:e], [0, e - s], columns,
                   pack.numbers[s:e])


def _line(loop: Any, row: Pack, loss: float, norm: float, step: int) -> dict[str, Any]:
    """A row as the model saw it: where it stands, its own loss and norm, its text and how much of it is trained."""
    file, _, line = row.origins[0].rpartition(":")
    ids = row.ids_T.tolist()
    return {"step": step, "file": file, "line": int(line), "loss": _number(loss), "grad_norm": _number(norm),
            "tokens": len(ids), "trained_tokens": int((row.weights_T > 0).sum()), "text": loop.decode(ids), "ids": ids}


def _number(value: float) -> float | str:
    """JSON has no word for what is no number."""
    return value if finite(value) else str(value)
