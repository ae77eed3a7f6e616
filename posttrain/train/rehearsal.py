"""The dress rehearsal: one made-up update before the first real one, so that what does not fit is known at once."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core import ranks
from ..core.config import Settings
from ..core.errors import UserError
from ..core.pack import Pack, make_pack
from ..core.sequence import Sequence
from ..data.judge import Head
from ..model.attention import costliest_length
from ..model.device import choose_dtype
from ..model.forward import aligned
from ..model.load import config_of
from ..model.memory import Memory, available, give_back, size
from ..model.policy import Policy
from ..model.resolve import ModelRef, list_checkpoints
from .loop import Loop
from .objective import Models, Objective
from .optim import MasterAdamW
from .plan import MOST, Planner, told
from .plan_ranks import job_of, spread
from .room import give_way, in_force, least_pack, no_memory
from .update import accumulate, evaluate

Note = Callable[[str], None]
SURELY = 0.9  # a plan is within a tenth of what is measured (docs/memory.md): what is above by more surely fails
FEW = 128  # tokens of the pack that makes the sums of gradients exist before the large one runs


def settle_memory(settings: Settings, checkpoint: Path | None, ref: ModelRef | None, objective: Objective,
                  vocab_size: int, memory: Memory, note: Note) -> tuple[Settings, Planner]:
    """Settings with `pack_tokens` a number, and the arithmetic of the run's memory, before a weight is loaded.

    `auto` takes the most that four fifths of the free memory hold. Weights and optimizer that surely do not fit stop
    the run here: on CPU the system would end it without a word.
    """
    if changed := in_force(checkpoint):
        for key, value in changed.items():
            if getattr(settings, key) != value:
                note(f"{key} = {str(value).lower()}: in force at the checkpoint, since memory had run out")
        settings = settings.model_copy(update=changed)
    config = config_of(settings, ref, vocab_size)
    planner = Planner(config, settings, choose_dtype(settings.dtype, memory.device)[0], memory.device.type == "cpu",
                      objective.needs)
    free = available(memory.device)
    if settings.pack_tokens == "auto":
        most = planner.largest_pack(settings.method, settings.gradient_checkpointing, spare(free))
        most = max(most or 0, least_pack(settings))
        tokens = -int(ranks.largest([-most])[0])  # the least that any process has room for
        note(f"pack_tokens = {tokens}: the most, of at most {MOST:,}, that is planned within four fifths of "
             f"{size(free)} free")
        planner.settings = settings = settings.model_copy(update={"pack_tokens": tokens})
    if ranks.world() == 1 and planner.least(settings.method) > free:
        raise impossible(planner, free, planner.least(settings.method))
    return settings, planner


def spare(free: int) -> int:
    """Of so many free bytes those that `pack_tokens: auto` plans with."""
    return free * 4 // 5


def impossible(planner: Planner, free: int, needed: int) -> UserError:
    """The error of a run that does not fit, with the smallest change that would make it fit."""
    settings, where = planner.settings, "this machine" if planner.cpu else "the GPU"
    return UserError(f"the run does not fit in the memory of {where}", where=f"method: {settings.method}, pack_tokens: "
                     f"{settings.pack_tokens}", found=f"{size(needed)} planned, {size(free)} free",
                     fix=told(planner.change(free)))


def hold_rehearsal(loop: Loop, policy: Policy, head: Head, memory: Memory, planner: Planner, chosen: bool,
                   note: Note) -> None:
    """The largest update that the run can have, made up, before the first real one; and room on the disk.

    Where the program has `chosen` pack_tokens, it takes less until the rehearsal fits.
    """
    settings, left = loop.settings, loop.total - loop.state.step
    wide = 4 if settings.adapts else policy.stored.itemsize  # adapters are shipped in float32
    shipped = sum(p.numel() for p in policy.model.parameters() if p.requires_grad) * wide
    check_disk(loop.record.folder, loop.optimizer, shipped, settings, left)
    while True:
        began = time.perf_counter()
        planner.settings = loop.settings
        tokens, several = largest_pack(loop.settings.pack_tokens, head, loop.loader.total)
        planner.most = None if settings.is_sampled else known_most(head, loop.loader.total)
        if settings.is_sampled:  # what will be sampled is not known yet: every answer as long as it may be
            answers = -(-settings.batch_size * loop.objective.group // settings.minibatches)
            tokens, several = min(loop.settings.pack_tokens, answers * settings.longest), True
        planned = planner.sizes(settings.method, tokens, loop.settings.gradient_checkpointing, several)
        free = available(memory.device) + memory.now()
        if ranks.world() == 1 and planned.exact and planned.peak * SURELY > free:
            raise impossible(planner, free, planned.peak)
        try:
            rehearse(loop.models, loop.objective, loop.optimizer, tokens, settings.longest, several=several,
                     validates=bool(loop.held))
        except torch.cuda.OutOfMemoryError as e:
            said = str(e).split("\n")[0][:200]
        else:
            break
        if not chosen:
            raise no_memory(loop.settings, said)
        give_way(loop, said)
    give_back()
    peak = planned.peak
    if ranks.world() > 1:
        peak = spread(job_of(planner, settings.method, tokens, loop.settings.gradient_checkpointing),
                      ranks.world()).memory
    loop.record.status(memory={"planned": peak, "rehearsed": memory.peak(), "tokens": tokens})
    note(f"memory: {size(peak)} planned, {size(memory.peak())} at most in a rehearsal of {tokens:,} tokens "
         f"({time.perf_counter() - began:.1f} s)")


def rehearse(models: Models, objective: Objective, optimizer: MasterAdamW, tokens: int, max_length: int, *,
             several: bool, validates: bool) -> None:
    """Forward, backward, an optimizer step and a validation pass on `tokens` made-up tokens, every one trained.

    `several` sums gradients as an update of several packs does. It leaves no trace: weights, optimizer and randomness
    are what they were (test_rehearsal.py::test_it_leaves_no_trace).
    """
    device = models.policy.device
    sizes = [min(FEW, tokens), tokens] if several else [tokens]
    longest = costliest_length(max_length, models.policy.align > 1)
    vocabulary = models.policy.model.get_input_embeddings().weight.shape[0]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        made = [made_up_pack(n, longest, vocabulary, per_row(objective)) for n in sizes]
        made = objective.rehearsed(made, models)
        with optimizer.rehearsing():
            optimizer.begin(len(made))
            accumulate(models, objective, made, seed=0, step=0)
            optimizer.step(0.0, 1.0, optimizer.norm())
        if validates:
            evaluate(models, objective, made[-1:])


def per_row(objective: Objective) -> int:
    """Sequences that share an atom: two where they are a pair."""
    return 2 if "pair" in objective.rows else getattr(objective, "together", 1)


def made_up_pack(tokens: int, longest: int, vocabulary: int, per_atom: int = 1) -> Pack:
    """Random ids in equal sequences of at most `longest` tokens, so many to an atom; every position weighs 1."""
    count = min(tokens, aligned(-(-tokens // longest), per_atom))
    bounds = [i * tokens // count for i in range(count + 1)]
    ids = np.random.default_rng(0).integers(vocabulary, size=tokens)
    weights, reasons = np.ones(tokens, np.float32), np.zeros(tokens, np.uint8)
    spans = [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]
    pack = make_pack([Sequence(ids[at], weights[at], reasons[at], "rehearsal", number=i) for i, at in enumerate(spans)],
                     [per_atom] * (count // per_atom))
    pack.weights_T = torch.ones(tokens)
    return pack


def known_most(head: Head, updates: int) -> int | None:
    """Tokens of the largest update, where the head holds every update of the run."""
    return max(head.updates, default=None) if len(head.updates) >= updates else None


def largest_pack(pack_tokens: int, head: Head, updates: int) -> tuple[int, bool]:
    """(tokens of the largest pack that a run of so many updates can have, whether an update may be several packs).

    That is `pack_tokens`, or less where the head holds every update of the run and the largest of them is smaller.
    """
    if (most := known_most(head, updates)) is not None:
        return max(1, min(pack_tokens, most)), most > pack_tokens
    if len(head.updates) < 2:
        return pack_tokens, True
    sizes = torch.tensor(head.updates, dtype=torch.float64)
    return pack_tokens, float(sizes.mean() + 4 * sizes.std()) > pack_tokens  # beyond: one update in 30,000


def checkpoints_kept(settings: Settings, updates: int | None) -> int:
    """Most checkpoints that lie on the disk at once in a run of so many updates (None: more than are kept).

    Those of `save_steps`, the one being written, and with early stopping the best; one at least, for Ctrl-C.
    """
    if not settings.save_steps and not settings.early_stopping_patience:
        return 1
    most = settings.save_total_limit + (2 if settings.early_stopping_patience else 1)
    if updates is None:
        return most
    written = updates // settings.save_steps if settings.save_steps else 0
    if settings.early_stopping_patience:
        written += updates // settings.eval_steps if settings.eval_steps else math.ceil(settings.num_train_epochs)
    return max(1, min(most, written))


def check_disk(folder: Path, optimizer: MasterAdamW, model_bytes: int, settings: Settings, updates: int) -> int:
    """Bytes of one checkpoint; a UserError where the disk cannot hold what the run will write to it.

    One checkpoint at least (Ctrl-C writes one) and the model at the end; with `save_steps` those that are kept and
    the one being written, as far as they are not there already; early stopping also writes and keeps the best.
    """
    one = sum(t.numel() * t.element_size() for tensors in optimizer.tensors().values() for t in tensors.values())
    one += 0 if optimizer.moments[0] else 8 * sum(p.numel() for _, p in optimizer.named)
    there = len(list_checkpoints(folder / "checkpoints"))
    more = 2 if settings.early_stopping_patience else 1
    most = max(1, checkpoints_kept(settings, updates) - there)
    free = shutil.disk_usage(folder).free
    if one * most + model_bytes <= free:
        return one
    room = int((free - model_bytes) // one) + there if free > model_bytes else 0
    fewer = f"set save_total_limit: {room - more}, or " if most > 1 and room > more else ""
    raise UserError("the disk is too small for " + ("one checkpoint" if most == 1 or room < 1 else "the checkpoints"),
                    where=str(folder), found=f"{size(free)} free",
                    expected=f"{size(one * most + model_bytes)}: {most} × {size(one)}, and {size(model_bytes)} for the "
                             "model",
                    fix=f"{fewer}put output_dir on another disk, or make room")
