"""Early stopping: which validation was the best so far, when enough of them were no better, and back to the best."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core import ranks
from ..core.errors import UserError
from ..model.checkpoint import load_checkpoint, verify
from .optim import MasterAdamW


@dataclass(slots=True)
class Best:
    """The best validation of a run: its loss, its update, and how many validations since then were no better.

    Training ends when that many are `early_stopping_patience` (of the kind of UP_s in Prechelt 1998, *Early stopping -
    but when?*, which counts rises from one validation to the next). It is part of a checkpoint's state, so a resumed
    run stops where the whole run stops (test_early_stopping.py).
    """

    loss: float | None = None
    step: int = 0
    since: int = 0

    def judge(self, loss: float, step: int) -> bool:
        """Take a validation into account -> whether it is the best so far; one that is not a number never is."""
        better = loss == loss and (self.loss is None or loss < self.loss)
        if better:
            self.loss, self.step, self.since = loss, step, 0
        else:
            self.since += 1
        return better


def still_there(best: Best, step: int, checkpoints: Path, note: Callable[[str], None]) -> Best:
    """The best validation of a run that goes on at update `step`; a new beginning where its weights are lost."""
    if best.loss is None or best.step == step:  # the checkpoint that was just restored
        return best
    wrong = verify(checkpoints / str(best.step)) if ranks.first() else ""
    if not ranks.any_of(bool(wrong)):
        return best
    note(f"the checkpoint of the best update {best.step} is lost ({wrong}): the best is sought anew from here on")
    return Best()


def go_back(best: Best, step: int, checkpoints: Path, optimizer: MasterAdamW) -> int:
    """Put the weights of the best validation into the model, from its checkpoint -> the update that they are of."""
    if best.loss is None or best.step == step:
        return step
    path = checkpoints / str(best.step)
    if wrong := verify(path):
        raise UserError("the checkpoint of the best update is damaged", where=str(path), found=wrong,
                        fix="go on with resume: the best is then sought anew from the last good checkpoint on")
    files, _ = load_checkpoint(path)
    optimizer.restore({name: files[name] for name in ("weights", "halves") if name in files}, optimizer.steps)
    return best.step
