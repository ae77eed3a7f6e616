"""AdamW on float32 masters: the model computes in its own type, what is learnt is kept in full precision."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.optim.adamw import adamw

from ..model.halves import join, leave_middles, split, whole
from .share import sum_gradients

# Elements updated at once: few enough that on CPU a piece with its float32 copies stays in a core's cache over all the
# steps of an update (half the time of pieces 16 times as large, docs/log.md), and enough that calling costs nothing.
PIECE = {"cpu": 1 << 17, "cuda": 1 << 25}

MOMENTS = ("exp_avg", "exp_avg_sq")


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019, alg. 2) over named parameters; decay on matrices only.

    A bf16 parameter has a float32 master, held as the parameter itself and the 16 bits that it lacks: exact, and no
    larger than float32 alone (test_optim.py::test_halves_are_exact). Gradients of several packs are summed in float32;
    with one pack they stay as they come, the same numbers in half the memory (…::test_one_pack_needs_no_sum).
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], *, beta1: float, beta2: float, eps: float,
                 weight_decay: float):
        self.named = [(n, p) for n, p in named if p.requires_grad]
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.low: list[torch.Tensor | None] = [None] * len(self.named)  # the master's lower halves
        self.moments: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self.steps = 0
        self._sums: list[torch.Tensor | None] = [None] * len(self.named)
        self._kept: dict[int, torch.Tensor] = {}  # room of the sums, from one update to the next
        self._summing = False
        self._dry = ""  # in a rehearsal: whether the moments are "fresh" or "restored"

    def lower(self, dtype: torch.dtype, keep: Iterable[str] = ()) -> None:
        """Let the model compute in `dtype`; parameters whose name holds one of `keep` stay as they are."""
        keep = tuple(keep)
        for i, (name, p) in enumerate(self.named):
            if dtype == torch.bfloat16 and p.dtype == torch.float32 and not any(k in name for k in keep):
                high = torch.empty_like(p.data, dtype=dtype)
                self.low[i] = torch.empty_like(p.data, dtype=torch.int16)
                for a, b in _pieces(p.numel(), p.device):
                    split(p.data.view(-1)[a:b], high.view(-1)[a:b], self.low[i].view(-1)[a:b])
                p.data = high  # the wide one was used up
                p.register_post_accumulate_grad_hook(self._summer(i))

    def _summer(self, i: int):
        def add(p: torch.nn.Parameter) -> None:
            if self._summing:
                if self._sums[i] is None:
                    if i not in self._kept:
                        self._kept[i] = torch.empty_like(p.data, dtype=torch.float32)
                    self._sums[i] = self._kept[i].copy_(p.grad)
                else:
                    self._sums[i].add_(p.grad)
                p.grad = None
        return add

    def begin(self, packs: int) -> None:
        """Forget the last gradient; `packs` backward passes follow.

        The sums' room is kept: taken anew between the tensors of a backward, it would hold them apart when they are
        freed (docs/memory.md). Where it is there, an update of one pack uses it too, and holds no gradient beside it.
        """
        self._sums = [None] * len(self.named)
        self._summing = packs > 1 or bool(self._kept)
        for _, p in self.named:
            p.grad = None

    def gradients(self) -> list[torch.Tensor | None]:
        """The gradient of each parameter, summed or as it came; None where the loss did not reach it."""
        return [self.gradient(i) for i in range(len(self.named))]

    def set_gradient(self, i: int, gradient: torch.Tensor) -> None:
        """Put another gradient, of any type, in the place of parameter i's."""
        self._sums[i], self.named[i][1].grad = gradient, None

    def sum_over_processes(self) -> None:
        """Give each process of the run the sum of all their gradients."""
        sum_gradients(self)

    def norm(self) -> torch.Tensor:
        """Euclidean norm of the whole gradient, float32 or wider, a scalar tensor."""
        parts = [torch.linalg.vector_norm(g.reshape(-1)[a:b].to(torch.promote_types(g.dtype, torch.float32)))
                 for g in self.gradients() if g is not None for a, b in _pieces(g.numel(), g.device)]
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())

    def master(self, i: int) -> torch.Tensor:
        """Parameter i in full precision; a new tensor where the model computes in bf16."""
        p, low = self.named[i][1].data, self.low[i]
        return p if low is None else join(p.view(-1), low.view(-1)).view(p.shape)

    def masters(self, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
        """What makes each parameter in full precision, or in the `dtype` in which it will be stored, by name."""
        return {name: partial(self.master, i) for i, (name, _) in enumerate(self.named)}

    @torch.no_grad()
    def step(self, rate: float, max_norm: float, norm: torch.Tensor) -> None:
        """One update with the gradient clipped to `max_norm` (0: never), given its norm."""
        if not self.moments[0]:
            self.moments = self._fresh_moments()
        scale = max_norm / float(norm) if max_norm and float(norm) > max_norm else 1.0
        self.steps += 1
        batch: list[tuple[int, int, int]] = []  # (parameter, from, to): pieces of one call, alike in decay
        size, decays, room = 0, None, _Room(self.named[0][1].device)
        for i, (_, p) in enumerate(self.named):
            if self.gradient(i) is None:
                continue
            for a, b in _pieces(p.numel(), p.device):
                if batch and (size + b - a > PIECE[p.device.type] or decays != (p.dim() >= 2)):
                    self._apply(batch, room, rate, decays, scale)
                    batch, size = [], 0
                batch.append((i, a, b))
                size, decays = size + b - a, p.dim() >= 2
        if batch:
            self._apply(batch, room, rate, decays, scale)
        self.begin(1)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Inside it moments are there from the first backward on, and a step changes nothing: masters are dropped."""
        steps, fresh = self.steps, not self.moments[0]
        self._dry = "fresh" if fresh else "restored"
        if fresh:
            self.moments = tuple([m.zero_() for m in kind] for kind in self._fresh_moments())  # touched: held from here
        try:
            yield
        finally:
            self.begin(1)
            self.steps, self._dry = steps, ""
            for m in (*self.moments[0], *self.moments[1]) if fresh else ():  # kept: given back and taken again, they
                m.zero_()  # would leave holes in the heap (1.9 GB of them at 0.6B, docs/log.md)

    def _fresh_moments(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return tuple([torch.zeros_like(p.data, dtype=torch.promote_types(p.dtype, torch.float32))
                      for _, p in self.named] for _ in range(2))

    def gradient(self, i: int) -> torch.Tensor | None:
        """The gradient of parameter i, summed or as it came."""
        return self._sums[i] if self._sums[i] is not None else self.named[i][1].grad

    def _apply(self, batch, room: _Room, rate: float, decays: bool, scale: float) -> None:
        def flat(tensors, i, a, b):
            return tensors[i].view(-1)[a:b]

        def part(i, a, b):
            return self.named[i][1].data.view(-1)[a:b]

        room.empty()
        masters = [part(*at) if self.low[at[0]] is None
                   else join(part(*at), flat(self.low, *at), room.take(at[2] - at[1])) for at in batch]
        moments = [[flat(m, *at) for at in batch] for m in self.moments]
        if self._dry:
            masters = [m.clone() for m in masters]
        if self._dry == "restored":
            moments = [[m.clone() for m in kind] for kind in moments]
        grads = [self.gradient(i).reshape(-1)[a:b] for i, a, b in batch]
        grads = [g if g.dtype == m.dtype else room.take(len(g)).copy_(g)
                 for g, m in zip(grads, masters, strict=True)]
        if scale != 1.0:
            torch._foreach_mul_(grads, scale)
        count = [torch.tensor(float(self.steps - 1), device=m.device) for m in masters]
        adamw(masters, grads, *moments, [], count,
              fused=True, amsgrad=False, beta1=self.beta1, beta2=self.beta2, lr=rate,
              weight_decay=self.weight_decay if decays else 0.0, eps=self.eps, maximize=False)
        for (i, a, b), master in zip(batch, masters, strict=True):
            if self.low[i] is not None and not self._dry:
                split(master, part(i, a, b), flat(self.low, i, a, b))
                leave_middles(flat(self.low, i, a, b))
            if b == self.named[i][1].numel():  # its last piece
                self.named[i][1].grad = self._sums[i] = None

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds, by file: the weights, the halves they lack, and, after an update, both moments."""
        names = [n for n, _ in self.named]
        files = {"weights": {n: p.data for n, p in self.named},
                 "halves": {n: low for n, low in zip(names, self.low, strict=True) if low is not None}}
        if self.moments[0]:
            files["optimizer"] = {f"{kind}.{n}": t for kind, tensors in zip(MOMENTS, self.moments, strict=True)
                                  for n, t in zip(names, tensors, strict=True)}
        return {name: tensors for name, tensors in files.items() if tensors}

    @torch.no_grad()
    def restore(self, files: dict[str, dict[str, torch.Tensor]], steps: int) -> None:
        """Take masters, moments and the count of updates from a checkpoint's tensors."""
        for i, (name, p) in enumerate(self.named):
            wide = whole(files, name, p.shape).to(p.device)
            if self.low[i] is None:
                p.data.copy_(wide)
            else:
                split(wide.reshape(-1).clone(), p.data.view(-1), self.low[i].view(-1))
        if saved := files.get("optimizer"):
            self.moments = tuple([saved[f"{kind}.{n}"].to(p.device, copy=True) for n, p in self.named]  # not the file's
                                 for kind in MOMENTS)
        self.steps = steps


class _Room:
    """float32 room for the masters and gradients of one call: the same memory in every call of an update."""

    def __init__(self, device: torch.device):
        self.device, self.all, self.used = device, None, 0

    def take(self, count: int) -> torch.Tensor:
        """`count` elements of its own until `empty`; a call takes at most a piece of masters and one of gradients."""
        if self.all is None:
            self.all = torch.empty(2 * PIECE[self.device.type], device=self.device)
        self.used += count
        return self.all[self.used - count:self.used]

    def empty(self) -> None:
        self.used = 0


def _pieces(size: int, device: torch.device) -> list[tuple[int, int]]:
    """[0, size) in equal ranges of at most a piece."""
    count = max(1, -(-size // PIECE[device.type]))
    step = -(-size // count)
    return [(a, min(a + step, size)) for a in range(0, size, step)] if size else []
