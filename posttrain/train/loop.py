"""The loop: batches in, updates, validation, checkpoints, one result. Every objective runs through here."""

from __future__ import annotations

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from ..core import ranks
from ..core.config import Settings
from ..core.errors import UserError
from ..core.fault import fault_point
from ..core.pack import Pack
from ..data.batch import Batch
from ..data.judge import check_lost
from ..data.ledger import Ledger
from ..data.loader import Loader
from ..model.shard_files import save_together
from .conditions import data_files
from .early_stopping import Best
from .nonfinite import blame, finite
from .objective import Models, Objective
from .optim import MasterAdamW
from .record import Record
from .room import KEYS, within_memory
from .schedule import learning_rate, warmup_updates
from .share import count_tokens, even_packs, share_packs
from .update import accumulate, evaluate

Say = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class State:
    """The small state of a run: what a checkpoint holds besides weights and optimizer."""

    step: int = 0
    epoch: float = 0.0
    ledger: Ledger = field(default_factory=Ledger)
    eval_loss: float | None = None
    eval_loss_before: float | None = None
    objective: dict[str, Any] = field(default_factory=dict)
    best: Best = field(default_factory=Best)

    def to_json(self) -> dict[str, Any]:
        return {"step": self.step, "epoch": self.epoch, "ledger": self.ledger.to_json(), "eval_loss": self.eval_loss,
                "eval_loss_before": self.eval_loss_before, "objective": self.objective,
                "best": asdict(self.best)}

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> State:
        return cls(saved["step"], saved["epoch"], Ledger.from_json(saved["ledger"]), saved["eval_loss"],
                   saved["eval_loss_before"], saved.get("objective", {}), Best(**saved.get("best", {})))


@dataclass(slots=True)
class Loop:
    """Everything an update needs, and where its traces go.

    `facts` joins each checkpoint's state (what is needed to open it as a model); `say` receives each line of metrics;
    `should_stop` is asked after every update: a true answer means checkpoint and leave; `sampler` answers some prompts
    at every validation.
    """

    settings: Settings
    models: Models
    objective: Objective
    optimizer: MasterAdamW
    loader: Loader
    record: Record
    pack_tokens: int
    held: list[Pack] = field(default_factory=list)
    held_rows: int = 0
    state: State = field(default_factory=State)
    facts: dict[str, Any] = field(default_factory=dict)
    clock: float = 0.0
    say: Say = lambda line: None
    should_stop: Callable[[], bool] = lambda: False
    decode: Callable[[list[int]], str] = str
    hold: Callable[[int], list[Pack]] = lambda pack_tokens: []  # the held-out rows in packs of so many tokens
    remark: Callable[[str], None] = lambda text: None
    settled: int = -1  # the optimizer's steps at the state's update: more of them, and the weights are beyond it
    sampler: Callable[[], tuple[list[dict[str, Any]], dict[str, float]]] | None = None

    def run(self) -> bool:
        """Updates from the state's step to the end, or an early one -> True, or False where it was asked to stop."""
        self.settled, self.state.objective = self.optimizer.steps, self.objective.state
        patience = self.settings.early_stopping_patience
        if self.held and self.state.step == 0:
            self.state.eval_loss_before = self.validate()["eval_loss"]
        self.clock = time.perf_counter()  # an update's seconds hold the wait for its rows, not validation or saving
        for batch in self.loader.batches(start=self.state.step // self.objective.updates):
            before, step = self.state.step, batch.step * self.objective.updates
            line = within_memory(self, partial(self.updates, batch, before)) | {"step": step}
            self.state.ledger.merge(batch.ledger)  # only now: the state is never that of half an update
            self.record.rejected(batch.rejected, step)
            self.state.step, self.state.epoch, self.state.objective = step, batch.epoch, self.objective.state
            self.settled = self.optimizer.steps
            done, stop = step == self.total, ranks.any_of(self.should_stop())
            keep = False  # this update, because it is the best so far
            if self.held and (done or self._is_time_to_validate(batch, before)):
                line |= (found := self.validate())
                self.state.eval_loss = found["eval_loss"]
                if patience:
                    keep = self.state.best.judge(self.state.eval_loss, step)
                    done = done or self.state.best.since >= patience
            self.tell(line)
            fault_point("metrics")
            if batch.epoch_ends:
                self._judge()
            if not done and (keep or stop or _passed(self.settings.save_steps, before, step)):
                self.checkpoint()
            if done:
                break
            if stop:
                return False
            self.clock = time.perf_counter()
        self.record.ledger(self.state.ledger)
        return True

    @property
    def total(self) -> int:
        """Updates of the whole run: of each batch of rows, as many as the objective makes."""
        return self.loader.total * self.objective.updates

    def updates(self, batch: Batch, before: int) -> dict[str, Any]:
        """Every update of a batch after update `before` -> the last one's metrics; those of the others are told."""
        line: dict[str, Any] = {}
        self.objective.state = deepcopy(self.state.objective)  # what a try that fails changes in it is forgotten
        atoms = self.objective.arrange(batch.atoms) if batch.atoms else []
        packs = share_packs(atoms, self.pack_tokens) if atoms else []
        for step, update in enumerate(self.objective.collect(packs, self.models) if packs else [[]], before + 1):
            if line:
                self.tell(line)
            rate = self.rate(step)
            line = {"step": step, "epoch": batch.epoch, "loss": None, "learning_rate": rate, "grad_norm": None}
            if update:
                update = even_packs(update)
                means = self.update(update, step, rate)
                self.objective.updated(means)
                line |= means
            if packs:
                line |= self.objective.facts
            seconds = -self.clock + (now := time.perf_counter())
            tokens, trained = count_tokens(update)
            line |= {"tokens": tokens, "trained_tokens": trained, "tokens_per_second": tokens / seconds,
                     "seconds": seconds}
            self.clock = now
        self.record.samples(self.objective.samples, before + 1)
        return line

    def rate(self, step: int) -> float:
        """The learning rate of an update."""
        settings = self.settings
        warmup = warmup_updates(self.total, settings.warmup_ratio, settings.warmup_steps)
        return learning_rate(step, self.total, settings.learning_rate, settings.lr_scheduler_type, warmup)

    def tell(self, line: dict[str, Any]) -> None:
        """One line of metrics, to the record and to whoever listens."""
        self.record.metrics(line)
        self.say(line)

    def update(self, packs: list[Pack], step: int, rate: float) -> dict[str, float]:
        """One optimizer step on these packs -> its means and the gradient's norm before clipping."""
        self.optimizer.begin(len(packs))
        means = accumulate(self.models, self.objective, packs, self.settings.seed, step)
        self.optimizer.sum_over_processes()
        norm = self.optimizer.norm()
        if not finite(means["loss"], float(norm)):
            raise blame(self, packs, step, means["loss"], float(norm))
        fault_point("update")
        self.optimizer.step(rate, self.settings.max_grad_norm, norm)
        return means | {"grad_norm": float(norm)}

    def validate(self) -> dict[str, float]:
        """What the objective finds on the held-out rows: `eval_loss`, of most its mean loss, and what else it tells."""
        return within_memory(self, self._validate)

    def change_layout(self, change: dict[str, Any]) -> None:
        """Go on with other values of keys that change memory and not the result; checkpoints hold them."""
        self.settings = self.settings.model_copy(update=change)
        self.pack_tokens, self.objective.settings = self.settings.pack_tokens, self.settings
        if hasattr(self.models.reward, "pack_tokens"):
            self.models.reward.pack_tokens = self.pack_tokens
        self.held = self.hold(self.pack_tokens)
        self.facts["in_force"] = {key: getattr(self.settings, key) for key in KEYS}
        conditions = self.facts["conditions"]
        conditions["layout"] = conditions["layout"] | {"pack_tokens": self.pack_tokens}

    def _validate(self) -> dict[str, float]:
        found = self.objective.validate(self.held, self.models) or {
            f"eval_{name}": value for name, value in evaluate(self.models, self.objective, self.held).items()
            if name != "units"}
        if self.sampler:
            lines, more = self.sampler()
            self.record.samples(lines, self.state.step)
            found = found | more
        return found

    def _judge(self) -> None:
        """Stop where an epoch lost too many rows; what it learnt is kept, for a resume that allows the loss."""
        try:
            check_lost(self.state.ledger, self.settings)
        except UserError:
            self.checkpoint()
            raise

    def checkpoint(self, keep_all: bool = False) -> None:
        """Write checkpoints/STEP; metrics and ledger on disk are at the same update."""
        self.record.flush(self.state.ledger)
        state = {**self.state.to_json(), **self.facts, "optimizer_steps": self.optimizer.steps}
        state["conditions"] = {**self.facts["conditions"], "data": data_files(self.loader.files())}
        save_together(self.record.folder / "checkpoints", self.state.step, self.optimizer.tensors(), state,
                      None if keep_all else self.settings.save_total_limit, self.state.best.step)

    def _is_time_to_validate(self, batch: Batch, before: int) -> bool:
        every = self.settings.eval_steps
        return _passed(every, before, self.state.step) if every else batch.epoch_ends


def _passed(every: int | None, before: int, step: int) -> bool:
    """Whether a multiple of `every` lies among the updates after `before` up to `step`."""
    return bool(every) and before // every != step // every
