"""From settings to a loop that is ready to run, and from its end to the run's result."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..core import ranks
from ..core.changes import kept_values
from ..core.choices import saving
from ..core.config import Settings
from ..core.errors import UserError, WriteError
from ..core.sequence import Sequence
from ..data.judge import Head
from ..data.loader import Loader
from ..model.adapters import count_parameters
from ..model.checkpoint import latest_checkpoint, writing
from ..model.device import choose_device, choose_dtype
from ..model.export import export_model
from ..model.heads import PREFIX, make_heads
from ..model.memory import Memory, give_back
from ..model.noise import EmbeddingNoise
from ..model.policy import Policy, build_policy, kept_wide
from ..model.probe import prepare_forward
from ..model.resolve import ModelRef
from ..model.reward import check_classifier
from ..model.shard import require_packs, shard_model, shards
from .conditions import Conditions, code_versions, layout_of
from .early_stopping import go_back
from .guards import BlownUp
from .inputs import inputs_of
from .loop import Loop, State
from .objective import Objective
from .optim import MasterAdamW
from .record import Record, SilentRecord
from .reference import open_reference, starting_weights
from .rehearsal import hold_rehearsal, settle_memory
from .restore import newest_checkpoint, restore
from .samples import make_sampler
from .scoring import Score
from .share import share_packs
from .stage import add_roles, open_models

Note = Callable[[str], None]


@dataclass(slots=True)
class Session:
    """A run between its start and its end."""

    loop: Loop
    policy: Policy
    spec: Any
    head: Head
    record: Record
    began: float
    memory: Memory | None = None
    exported: int = 0  # the update whose weights the model has in the end

    def run(self) -> str:
        """Train -> `finished` or `interrupted`; a finished run has its model folder."""
        loop, record = self.loop, self.record
        record.status(status="running", step=loop.state.step, held_out_rows=loop.held_rows)
        try:
            whole = loop.run()
        except BaseException as e:
            with contextlib.suppress(UserError):  # a full disk has said so already
                if isinstance(e, BlownUp):
                    record.diagnosis(e, latest_checkpoint(record.folder / "checkpoints")[0])
                elif isinstance(e, UserError) and not isinstance(e, WriteError):
                    self._keep()
                record.status(status="interrupted" if isinstance(e, KeyboardInterrupt) else "failed",
                              step=loop.state.step)
            raise
        self.exported = loop.state.step
        if whole and loop.settings.early_stopping_patience:
            self.exported = go_back(loop.state.best, loop.state.step, record.folder / "checkpoints", loop.optimizer)
            if self.exported != loop.state.step:
                loop.state.eval_loss = loop.state.best.loss
        if self.memory:
            record.status(memory=record.read_status().get("memory", {}) | {"measured": self.memory.peak()})
        record.status(status="exporting" if whole else "interrupted", step=loop.state.step,
                      eval_loss=loop.state.eval_loss, eval_loss_before=loop.state.eval_loss_before)
        return "finished" if whole else "interrupted"

    def _keep(self) -> None:
        """Where the data, a row or a number ended the run: a checkpoint of the last whole update, beside the others.

        Not with several processes, of which one may be alone in its trouble.
        """
        loop = self.loop
        if ranks.world() == 1 and loop.state.step and loop.optimizer.steps == loop.settled:
            loop.checkpoint(keep_all=True)

    def export(self, card: str) -> Path:
        """Write the model folder; where that fails, a last checkpoint, from which to go on."""
        loop, record = self.loop, self.record
        masters = loop.optimizer.masters(self.policy.stored)
        folder, failure = record.folder / "model", None
        try:
            if ranks.first():
                export_model(folder, self.policy, masters, self.spec, card)
        except BaseException as e:  # whatever it was, what was learnt is not lost with it
            failure = e
        if ranks.any_of(failure is not None):
            if self.exported == loop.state.step:  # else the checkpoint that it was taken from is there
                with contextlib.suppress(UserError):
                    loop.checkpoint()
            raise failure or ranks.LostError("another process of this run failed")
        record.status(exported_step=self.exported, model="model")
        return folder

    def finish(self, keep: Callable[[], Any]) -> Any:
        """What `keep` makes of the finished run, and, as the last act of all, its word that it is finished."""
        try:
            kept = keep()
        except BaseException:
            if self.exported == self.loop.state.step:
                with contextlib.suppress(UserError):
                    self._keep()
            raise
        self.record.status(status="finished", seconds_of_last_start=round(time.perf_counter() - self.began, 2))
        return kept


def open_session(settings: Settings, folder: Path, ref: ModelRef | None, loader: Loader, spec: Any,
                 objective: Objective, note: Note, began: float, score: Score | None = None) -> Session:
    """Build the model, its optimizer and the loop; restore the last checkpoint where `resume` asks for it.

    `note` is told every choice with its reason, in the order a reader wants them. The loader works meanwhile.
    `score` is the reward function of a run that learns from its own answers.
    """
    set_determinism(settings)
    memory = Memory.begin(choose_device(settings.device)[0])
    chosen = settings.pack_tokens == "auto"
    checkpoint = newest_checkpoint(settings, folder, note)
    settings, planner = settle_memory(settings, checkpoint, ref, objective, spec.vocab_size, memory, note)
    objective.settings = settings  # pack_tokens is a number from here on
    loader.begin_files()
    new_tokens = [spec.control[token] for token in spec.new_tokens]
    policy = build_policy(settings, ref, vocab_size=spec.vocab_size, new_tokens=new_tokens,
                          special={f"{name}_token_id": spec.id(name) for name in ("bos", "eos")})
    add_roles(settings, policy, ref, objective, note)
    _tell_machine(settings, policy, note)
    if shards(settings):
        shard_model(policy.model, policy.dtype, policy.device, kept_wide(policy.model))
    if "scores" in objective.needs:
        check_classifier(policy.model.config)
    policy.heads = make_heads(policy.model, objective.needs, settings.seed)
    optimizer = _optimizer(settings)(policy.named_parameters(), beta1=settings.adam_beta1, beta2=settings.adam_beta2,
                            eps=settings.adam_epsilon, weight_decay=settings.weight_decay)
    record, state = Record(folder) if ranks.first() else SilentRecord(folder), State()
    continued = settings.adapts and ref is not None and ref.adapter is not None
    started = starting_weights(policy) if objective.referenced and continued else None
    settings = _with_saving(settings, loader, note)
    conditions = _conditions(settings, policy, spec, objective, score)
    saved = restore(settings, record, optimizer, state, conditions, loader, note, policy, checkpoint)
    if state.objective:
        objective.state = state.objective
    optimizer.lower(policy.dtype, (PREFIX, *kept_wide(policy.model)))
    give_back()
    forward, how = prepare_forward(policy.model)
    forward.heads = policy.heads
    note(f"forward: {how}")
    if shards(settings):
        require_packs(forward.flat)
    if settings.neftune_noise_alpha:
        forward.noise = EmbeddingNoise(forward.causal.get_input_embeddings(), settings.neftune_noise_alpha,
                                       settings.seed)
    head = loader.judge()
    spec.enable_thinking = head.thinking  # saved with the tokenizer: answers are asked for as training asked
    if ranks.first():
        with writing(folder / "tokenizer"):
            spec.save(folder / "tokenizer")
    facts = {"base": str(Path(ref.base).resolve()) if ref and Path(ref.base).exists() else (ref.base if ref else ""),
             "adapter": str(ref.adapter.resolve()) if ref and ref.adapter else None, "vocab_size": spec.vocab_size,
             "base_hash": policy.base.sha256, "new_tokens": new_tokens, "conditions": conditions,
             "reference": saved.get("reference")}
    atoms, held_rows = _held_atoms(settings, loader, note)
    sampler = make_sampler(policy.model, spec, [a[0] for a in atoms]) if "logprobs" in objective.needs else None
    atoms = objective.arrange(atoms) if atoms else []
    models = open_models(settings, policy, forward, spec, score, note)
    if objective.referenced:
        models.reference = open_reference(settings, forward, started, folder, loader, atoms, state.step, note,
                                          objective.arrange, facts)

    def hold(pack_tokens: int):
        return objective.held(share_packs(atoms, pack_tokens), models) if atoms else []

    loop = Loop(settings, models, objective, optimizer, loader, record, settings.pack_tokens,
                held=hold(settings.pack_tokens), held_rows=held_rows, state=state, facts=facts, decode=spec.decode,
                hold=hold, remark=note, sampler=sampler)
    hold_rehearsal(loop, policy, head, memory, planner, chosen, note)
    return Session(loop, policy, spec, head, record, began, memory=memory)


def _conditions(settings: Settings, policy: Policy, spec: Any, objective: Objective, score: Score | None) -> Conditions:
    """Under what this run computes, but for its data, whose checksums are still being made."""
    return {"settings": kept_values(settings), "code": code_versions(policy.base.four_bit),
            "inputs": inputs_of(settings, policy.ref, spec, scored_by_model=score is None,
                                held_to_start=objective.referenced or settings.is_sampled),
            "layout": layout_of(settings.pack_tokens, policy.dtype, policy.device)}


def _with_saving(settings: Settings, loader: Loader, note: Note) -> Settings:
    """Settings with `save_steps` of a run on its own answers whose length only the data says."""
    if not settings.is_sampled or settings.save_steps is not None:
        return settings
    key, value, why = saving(settings, loader.total)
    note(f"{key} = {value}: {why}")
    return settings.model_copy(update={key: value})


def _optimizer(settings: Settings) -> type[MasterAdamW]:
    if not shards(settings):
        return MasterAdamW
    from .sharded import ShardedAdamW

    return ShardedAdamW


def set_determinism(settings: Settings) -> None:
    """Threads, and bit-equal kernels where asked for."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is asked for it, before its first product
        torch.use_deterministic_algorithms(True)
    elif torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(False)


def _tell_machine(settings: Settings, policy: Policy, note: Note) -> None:
    _, why_device = choose_device(settings.device)
    _, why_dtype = choose_dtype(settings.dtype, policy.device)
    threads = f", {torch.get_num_threads()} threads" if policy.device.type == "cpu" else ""
    note(f"device = {policy.device}: {why_device}{threads}")
    note(f"dtype = {str(policy.dtype).removeprefix('torch.')}: {why_dtype}")
    trainable, total = count_parameters(policy.model)
    note(f"parameters: {trainable:,} trained of {total:,} ({trainable / total:.2%})")
    for line in policy.notes:
        note(line)


def _held_atoms(settings: Settings, loader: Loader, note: Note) -> tuple[list[list[Sequence]], int]:
    """The held-out rows, and how many they are."""
    if not settings.eval_data and not settings.eval_split:
        return [], 0
    held = loader.held_rows()
    if not held.atoms:
        raise UserError("no held-out row can be used", where="eval_data" if settings.eval_data else "eval_split",
                        found=f"{held.ledger.rows_read} rows read, all dropped")
    note(f"held out: {held.ledger.rows_trained:,} rows, {held.ledger.trained:,} tokens judged")
    return held.atoms, len({s.origin for s in held.sequences})
