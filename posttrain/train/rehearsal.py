"""The dress rehearsal: one made-up update before the first real one, so that what does not fit is known at once."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core.config import Settings
from ..core.errors import UserError
from ..core.pack import Pack, make_pack
from ..core.sequence import Sequence
from ..data.judge import Head
from ..model.attention import SHORT
from ..model.forward import aligned
from ..model.memory import Memory, size
from ..model.policy import Policy
from ..model.resolve import list_checkpoints
from .loop import Loop
from .objective import Models, Objective
from .optim import MasterAdamW
from .update import accumulate, evaluate

FEW = 128  # tokens of the pack that makes the sums of gradients exist before the large one runs


def hold_rehearsal(loop: Loop, policy: Policy, head: Head, memory: Memory, note: Callable[[str], None]) -> None:
    """The largest update that the run can have, made up, before the first real one; and room on the disk."""
    settings, left = loop.settings, loop.total - loop.state.step
    shipped = sum(p.numel() for p in policy.model.parameters() if p.requires_grad) * policy.stored.itemsize
    check_disk(loop.record.folder, loop.optimizer, shipped, settings, left)
    began = time.perf_counter()
    tokens, several = largest_pack(settings, head, loop.loader.total, per_row(loop.objective))
    if settings.is_sampled:  # what will be sampled is not known yet: every answer as long as it may be
        answers = -(-settings.batch_size * loop.objective.group // settings.minibatches)
        tokens, several = min(settings.pack_tokens, answers * settings.longest), True
    rehearse(loop.models, loop.objective, loop.optimizer, tokens, settings.longest, several=several,
             validates=bool(loop.held))
    loop.record.status(memory={"rehearsed": memory.peak(), "tokens": tokens})
    note(f"memory: {size(memory.peak())} at most in a rehearsal of {tokens:,} tokens"
         f" ({time.perf_counter() - began:.1f} s)")


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
        optimizer.begin(len(made))
        accumulate(models, objective, made, seed=0, step=0)
        optimizer.rehearse()
        if validates:
            evaluate(models, objective, made[-1:])


def per_row(objective: Objective) -> int:
    """Sequences that a row becomes: two where it is a pair."""
    return 2 if "pair" in objective.rows else 1


def costliest_length(max_length: int, few_shapes: bool) -> int:
    """Length of the sequences that attention keeps most of, per token: the longest, but for plain products on CPU."""
    return min(max_length, SHORT) if few_shapes else max_length


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


def largest_pack(settings: Settings, head: Head, updates: int, row: int = 1) -> tuple[int, bool]:
    """(tokens of the largest pack that a run of so many updates can have, whether one may be several packs).

    That is `pack_tokens`, or less where the update surely holds less: `batch_size` rows of `row` sequences of
    `max_length`, or what was counted, where the head holds every update of the run.
    """
    most, mean = settings.batch_size * row * settings.max_length, 0.0
    if head.updates and len(head.updates) >= updates:
        most = max(head.updates)
        return max(1, min(settings.pack_tokens, most)), most > settings.pack_tokens
    if len(head.updates) > 1:  # four standard deviations above the mean: once in 30,000 updates
        sizes = torch.tensor(head.updates, dtype=torch.float64)
        mean = min(most, float(sizes.mean() + 4 * sizes.std()))
    return min(settings.pack_tokens, most), (mean or most) > settings.pack_tokens


def check_disk(folder: Path, optimizer: MasterAdamW, model_bytes: int, settings: Settings, updates: int) -> int:
    """Bytes of one checkpoint; a UserError where the disk cannot hold what the run will write to it.

    One checkpoint at least (Ctrl-C writes one) and the model at the end; with `save_steps` those that are kept and
    the one being written, as far as they are not there already; early stopping also writes and keeps the best.
    """
    one = sum(t.numel() * t.element_size() for tensors in optimizer.tensors().values() for t in tensors.values())
    one += 0 if optimizer.moments[0] else 8 * sum(p.numel() for _, p in optimizer.named)
    there = len(list_checkpoints(folder / "checkpoints"))
    written, more = updates // settings.save_steps if settings.save_steps else 0, 1
    if settings.early_stopping_patience:
        written += updates // settings.eval_steps if settings.eval_steps else math.ceil(settings.num_train_epochs)
        more = 2
    most = max(1, min(settings.save_total_limit + more, written) - there)
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
