"""AdamW where each process holds a share of every weight, its gradient and its moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch.distributed.tensor import DTensor

from ..core import ranks
from ..model.halves import whole
from ..model.shard import share_of
from .optim import MOMENTS, MasterAdamW
from .share import sum_gradients


class ShardedAdamW(MasterAdamW):
    """MasterAdamW over this process's rows of each parameter, float32 masters as they are (test_ranks.py).

    What is not sharded (scalar heads) is held whole by every process, and its gradient summed as adapters' are.
    """

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], **how: float):
        pairs = [(n, p) for n, p in named if p.requires_grad]
        self.parameters = [p for _, p in pairs]
        super().__init__([(n, _rows(p)) for n, p in pairs], **how)

    def lower(self, dtype: torch.dtype, keep: Iterable[str] = ()) -> None:
        """Nothing: weights are gathered in the compute type as they are needed."""

    def begin(self, packs: int) -> None:
        super().begin(packs)
        for p in self.parameters:
            p.grad = None

    def sum_over_processes(self) -> None:
        """Take the gradients, which the backward has summed; sum those of parameters that every process holds."""
        for i, (p, (_, rows)) in enumerate(zip(self.parameters, self.named, strict=True)):
            if isinstance(p, DTensor) and p.grad is not None:
                rows.grad, p.grad = p.grad.to_local(), None
            elif self._sums[i] is None and rows is not p:
                rows.grad = None
        sum_gradients(self, [i for i, p in enumerate(self.parameters) if not isinstance(p, DTensor)])

    def norm(self) -> torch.Tensor:
        """Euclidean norm of the whole gradient, over all processes."""
        squares = [torch.zeros(2, dtype=torch.float64)]
        for p, g in zip(self.parameters, self.gradients(), strict=True):
            if g is not None and g.numel():
                own = torch.linalg.vector_norm(g, dtype=torch.float64) ** 2
                squares.append(torch.stack([own, own * 0] if isinstance(p, DTensor) else [own * 0, own]).cpu())
        rows, same = torch.stack(squares).sum(0).tolist()
        return torch.tensor(ranks.add_up([rows])[0] + same, dtype=torch.float64).sqrt()

    def master(self, i: int) -> torch.Tensor:
        """Parameter i whole, gathered from all processes: all must ask."""
        p = self.parameters[i].detach()
        return p.full_tensor() if isinstance(p, DTensor) else p

    def masters(self, dtype: torch.dtype) -> dict[str, Callable[[], torch.Tensor]]:
        """Every parameter, gathered one at a time and kept in memory by the first process alone: all must ask."""
        kept = {}
        for i, (name, _) in enumerate(self.named):
            gathered = self.master(i)
            if ranks.first():
                kept[name] = gathered.to("cpu", dtype if isinstance(self.parameters[i], DTensor) else None)
        return {name: partial(kept.get, name) for name in kept}

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """What a checkpoint holds, by file, each tensor in shards (DTensor)."""
        names = [n for n, _ in self.named]
        files = {"weights": {n: p.detach() for n, p in zip(names, self.parameters, strict=True)}}
        if self.moments[0]:
            files["optimizer"] = {f"{kind}.{n}": _like(p, t) for kind, kept in zip(MOMENTS, self.moments, strict=True)
                                  for n, p, t in zip(names, self.parameters, kept, strict=True)}
        return files

    @torch.no_grad()
    def restore(self, files: dict[str, Mapping[str, torch.Tensor]], steps: int) -> None:
        """Take this process's rows of masters and moments from a checkpoint of any number of processes."""
        def own(i: int, tensor: torch.Tensor) -> torch.Tensor:
            rows = share_of(tensor, ranks.world(), ranks.rank()) if isinstance(self.parameters[i], DTensor) else tensor
            return rows.to(self.named[i][1].device, copy=True)

        for i, (name, rows) in enumerate(self.named):
            rows.data.copy_(own(i, whole(files, name, self.parameters[i].shape)))
        if saved := files.get("optimizer"):
            self.moments = tuple([own(i, saved[f"{kind}.{n}"]) for i, (n, _) in enumerate(self.named)]
                                 for kind in MOMENTS)
        self.steps = steps


def _rows(p: torch.nn.Parameter) -> torch.nn.Parameter:
    """This process's rows of a parameter as one of their own, on the same memory."""
    return torch.nn.Parameter(p.detach().to_local()) if isinstance(p, DTensor) else p


def _like(p: torch.nn.Parameter, rows: torch.Tensor) -> torch.Tensor:
    """Rows that belong together as those of `p` do."""
    if not isinstance(p, DTensor):
        return rows
    return DTensor.from_local(rows, p.device_mesh, p.placements, run_check=False, shape=p.shape, stride=p.stride())
