"""AdamW on float32 masters: the model computes in its own type, what is learnt is kept in full precision."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.optim.adamw import adamw

GROUP = 1 << 24  # elements updated per call: bounds the float32 copies of bf16 gradients


class MasterAdamW:
    """AdamW (Loshchilov & Hutter 2019, alg. 2) over named parameters; decay on matrices only.

    A parameter in a two-byte type gets a float32 master; the model's copy is the master rounded. Gradients of several
    packs are summed in float32; with one pack they stay as they come, which is the same numbers in half the memory
    (test_optim.py::test_one_pack_needs_no_sum).
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], *, beta1: float, beta2: float, eps: float,
                 weight_decay: float):
        self.named = [(n, p) for n, p in named if p.requires_grad]
        self.beta1, self.beta2, self.eps, self.weight_decay = beta1, beta2, eps, weight_decay
        self.masters = [p.data for _, p in self.named]
        self.moments: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        self.steps = 0
        self._sums: list[torch.Tensor | None] = [None] * len(self.named)
        self._summing = False

    def lower(self, dtype: torch.dtype, keep: Iterable[str] = ()) -> None:
        """Let the model compute in `dtype`; parameters whose name holds one of `keep` stay as they are."""
        keep = tuple(keep)
        for i, (name, p) in enumerate(self.named):
            if any(k in name for k in keep) or p.dtype == dtype or torch.finfo(dtype).bits >= torch.finfo(p.dtype).bits:
                continue
            p.data = self.masters[i].to(dtype)
            p.register_post_accumulate_grad_hook(self._summer(i))

    def _summer(self, i: int):
        def add(p: torch.nn.Parameter) -> None:
            if self._summing:
                if self._sums[i] is None:
                    self._sums[i] = p.grad.to(self.masters[i].dtype)
                else:
                    self._sums[i].add_(p.grad)
                p.grad = None
        return add

    def begin(self, packs: int) -> None:
        """Forget the last gradient; `packs` backward passes follow."""
        self._sums = [None] * len(self.named)
        self._summing = packs > 1
        for _, p in self.named:
            p.grad = None

    def gradients(self) -> list[torch.Tensor | None]:
        """The gradient of each parameter, summed or as it came; None where the loss did not reach it."""
        return [s if s is not None else p.grad for s, (_, p) in zip(self._sums, self.named, strict=True)]

    def norm(self) -> torch.Tensor:
        """Euclidean norm of the whole gradient, float32 or wider, a scalar tensor."""
        parts = [torch.linalg.vector_norm(g, dtype=torch.promote_types(g.dtype, torch.float32))
                 for g in self.gradients() if g is not None]
        return torch.linalg.vector_norm(torch.stack(parts)) if parts else torch.zeros(())

    @torch.no_grad()
    def step(self, rate: float, max_norm: float, norm: torch.Tensor) -> None:
        """One update with the gradient clipped to `max_norm` (0: never), given its norm."""
        if not self.moments[0]:
            self.moments = tuple([torch.zeros_like(m) for m in self.masters] for _ in range(2))
        scale = max_norm / float(norm) if max_norm and float(norm) > max_norm else 1.0
        self.steps += 1
        grads = self.gradients()
        for decay in (False, True):
            group, size = [], 0
            for i, (m, g) in enumerate(zip(self.masters, grads, strict=True)):
                if g is None or (m.dim() >= 2) != decay:
                    continue
                group.append(i)
                size += m.numel()
                if size >= GROUP:
                    self._apply(group, grads, rate, self.weight_decay if decay else 0.0, scale)
                    group, size = [], 0
            if group:
                self._apply(group, grads, rate, self.weight_decay if decay else 0.0, scale)
        self.begin(1)

    def _apply(self, group, grads, rate, decay, scale):
        masters = [self.masters[i] for i in group]
        wide = [grads[i].to(m.dtype) for i, m in zip(group, masters, strict=True)]
        if scale != 1.0:
            torch._foreach_mul_(wide, scale)
        count = [torch.tensor(float(self.steps - 1), device=m.device) for m in masters]
        adamw(masters, wide, [self.moments[0][i] for i in group], [self.moments[1][i] for i in group], [], count,
              fused=True, amsgrad=False, beta1=self.beta1, beta2=self.beta2, lr=rate, weight_decay=decay, eps=self.eps,
              maximize=False)
        for i, m in zip(group, masters, strict=True):
            p = self.named[i][1]
            if p.data_ptr() != m.data_ptr():
                p.data.copy_(m)
        for i in group:
            self.named[i][1].grad = self._sums[i] = None

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds, by file: the masters and, once an update was made, both moments."""
        files = {"weights": {n: m for (n, _), m in zip(self.named, self.masters, strict=True)}}
        if self.moments[0]:
            first, second = self.moments
            files["optimizer"] = {f"{kind}.{n}": t for kind, tensors in (("exp_avg", first), ("exp_avg_sq", second))
                                  for (n, _), t in zip(self.named, tensors, strict=True)}
        return files

    @torch.no_grad()
    def restore(self, files: dict[str, dict[str, torch.Tensor]], steps: int) -> None:
        """Take masters, moments and the count of updates from a checkpoint's tensors."""
        for i, (name, p) in enumerate(self.named):
            self.masters[i].copy_(files["weights"][name])
            if p.data_ptr() != self.masters[i].data_ptr():
                p.data.copy_(self.masters[i])
        if saved := files.get("optimizer"):
            self.moments = tuple([saved[f"{kind}.{n}"].to(m.device, m.dtype)
                                  for (n, _), m in zip(self.named, self.masters, strict=True)]
                                 for kind in ("exp_avg", "exp_avg_sq"))
        self.steps = steps
