"""The loop: batches in, updates, validation, checkpoints, one result. Every objective runs through here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..core.config import Settings
from ..core.errors import UserError
from ..core.pack import Pack
from ..data.judge import check_lost
from ..data.ledger import Ledger
from ..data.loader import Loader
from ..model.checkpoint import save_checkpoint
from .conditions import data_files
from .objective import Models, Objective
from .optim import MasterAdamW
from .record import Record
from .schedule import learning_rate, warmup_updates
from .update import accumulate, check_finite, evaluate, lay_packs

Say = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class State:
    """The small state of a run: what a checkpoint holds besides weights and optimizer."""

    step: int = 0
    epoch: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    eval_loss: float | None = None
    eval_loss_before: float | None = None

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.epoch, "ledger": self.ledger.to_json(), "eval_loss": self.eval_loss,
                "eval_loss_before": self.eval_loss_before}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> State:
        return cls(saved["step"], saved["epoch"], Ledger.from_json(saved["ledger"]), saved["eval_loss"],
                   saved["eval_loss_before"])


@dataclass(slots=True)
class Loop:
    """Everything an update needs, and where its traces go.

    `facts` joins each checkpoint's state (what is needed to open it as a model); `say` receives each line of metrics;
    `should_stop` is asked after every update: a true answer means checkpoint and leave.
    """

    settings: Settings
    models: Models
    objective: Objective
    optimizer: MasterAdamW
    loader: Loader
    record: Record
    pack_tokens: int
    held: list[Pack] = field(default_factory=list)
    state: State = field(default_factory=State)
    facts: dict[str, Any] = field(default_factory=dict)
    say: Say = lambda line: None
    should_stop: Callable[[], bool] = lambda: False

    def run(self) -> bool:
        """Updates from the state's step to the end -> True, or False where it was asked to stop before."""
        settings, total = self.settings, self.loader.total
        warmup = warmup_updates(total, settings.warmup_ratio, settings.warmup_steps)
        if self.held and self.state.step == 0:
            self.state.eval_loss_before = self.validate()
        began = time.perf_counter()  # an update's seconds hold the wait for its rows, not validation or saving
        for batch in self.loader.batches(start=self.state.step):
            self.state.ledger.merge(batch.ledger)
            self.record.rejected(batch.rejected, batch.step)
            rate = learning_rate(batch.step, total, settings.learning_rate, settings.lr_scheduler_type, warmup)
            line = {"step": batch.step, "epoch": batch.epoch, "loss": None, "learning_rate": rate, "grad_norm": None}
            if batch.atoms:
                packs = lay_packs(batch.atoms, self.pack_tokens)
                for update in self.objective.collect(packs, self.models):
                    line |= self.update(update, batch.step, rate)
            seconds = time.perf_counter() - began
            tokens, trained = batch.ledger.trained + batch.ledger.masked, batch.ledger.trained
            line |= {"tokens": tokens, "trained_tokens": trained, "tokens_per_second": tokens / seconds,
                     "seconds": seconds}
            self.state.step, self.state.epoch = batch.step, batch.epoch
            done, stop = batch.step == total, self.should_stop()
            if self.held and (done or self._is_time_to_validate(batch)):
                line["eval_loss"] = self.state.eval_loss = self.validate()
            self.record.metrics(line)
            self.say(line)
            if batch.epoch_ends:
                self._judge()
            if not done and (stop or (settings.save_steps and batch.step % settings.save_steps == 0)):
                self.checkpoint()
            if stop and not done:
                return False
            began = time.perf_counter()
        self.record.ledger(self.state.ledger)
        return True

    def update(self, packs: list[Pack], step: int, rate: float) -> dict[str, float]:
        """One optimizer step on these packs -> its means and the gradient's norm before clipping."""
        self.optimizer.begin(len(packs))
        means = accumulate(self.models, self.objective, packs, self.settings.seed, step)
        norm = self.optimizer.norm()
        check_finite(means["loss"], float(norm), packs, step)
        self.optimizer.step(rate, self.settings.max_grad_norm, norm)
        return means | {"grad_norm": float(norm)}

    def validate(self) -> float:
        """Mean loss over the held-out rows, nats per trained token."""
        return evaluate(self.models, self.objective, self.held)["loss"]

    def _judge(self) -> None:
        """Stop where an epoch lost too many rows; what it learnt is kept, for a resume that allows the loss."""
        try:
            check_lost(self.state.ledger, self.settings)
        except UserError:
            self.checkpoint()
            raise

    def checkpoint(self) -> None:
        """Write checkpoints/STEP; metrics and ledger on disk are at the same update."""
        self.record.flush(self.state.ledger)
        state = {**self.state.to_json(), **self.facts, "optimizer_steps": self.optimizer.steps}
        state["conditions"] = {**self.facts["conditions"], "data": data_files(self.loader.files())}
        save_checkpoint(self.record.folder / "checkpoints", self.state.step, self.optimizer.tensors(), state,
                        self.settings.save_total_limit)

    def _is_time_to_validate(self, batch) -> bool:
        every = self.settings.eval_steps
        return batch.step % every == 0 if every else batch.epoch_ends
