"""Full fine-tuning in several processes: each holds a share of every weight, gradient and moment (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..core import ranks
from ..core.config import Settings
from ..core.errors import UserError
from .fused import fuse


def shards(settings: Settings) -> bool:
    """Whether a run's model is split over its processes: all weights are trained, and there are several."""
    return settings.method == "full" and ranks.world() > 1


def require_packs(flat: bool) -> None:
    """A model in shards makes as many forwards in each process; one sequence per forward would not."""
    if not flat:
        raise UserError("this model runs one sequence per forward, so its weights cannot be split over processes",
                        where="method", found="full", fix="set method: lora, or train in one process")


def shard_model(model, dtype: torch.dtype, device: torch.device, keep: tuple[str, ...] = ()) -> None:
    """Split the parameters of a whole model on CPU over all processes; each keeps float32 rows of its own on `device`.

    A layer's weights are gathered in `dtype` while it computes (Rajbhandari et al. 2020, stage 3), and its gradients
    are summed in float32 on the way back, never averaged: the loss is divided already. One layer at a time is whole on
    the device. Modules whose name holds one of `keep` compute in float32.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    wide = torch.promote_types(dtype, torch.float32)
    if all(p.dtype == dtype for p in model.parameters()):  # they are judged in the type that they will compute in
        fuse(model)
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    low = None if dtype == wide else dtype

    def split(module, param_dtype) -> None:
        for p in module.parameters():
            if p.device != device or p.dtype != wide:
                p.data = p.data.to(device, wide)
        types = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=low and wide, cast_forward_inputs=False)
        fully_shard(module, mesh=mesh, mp_policy=types)
        module.set_force_sum_reduction_for_comms(True)
        module.set_gradient_divide_factor(1.0)

    for name, module in model.named_modules():
        if any(k in name for k in keep) and next(module.parameters(recurse=False), None) is not None:
            split(module, None)
    for layer in layers_of(model):
        split(layer, low)
    split(model, low)
    model.set_reduce_scatter_unused_params(True)  # an expert that no token of a process took
    model.computes_in = dtype


def layers_of(model) -> list[torch.nn.Module]:
    """The decoder's layers: the list of modules that holds most of its parameters."""
    lists = [m for m in model.get_decoder().modules() if isinstance(m, torch.nn.ModuleList)]
    return list(max(lists, key=lambda m: sum(p.numel() for p in m.parameters()), default=[]))


def is_sharded(model) -> bool:
    """Whether `shard_model` has been here."""
    return hasattr(model, "computes_in")


def inside_shards(model, run: Callable[..., dict[str, torch.Tensor]]) -> Callable[..., dict[str, torch.Tensor]]:
    """`run`, as a forward of the sharded model: what it calls, the head chunk by chunk too, finds whole weights."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    model.run_pack = run
    register_fsdp_forward_method(model, "run_pack")
    wrapped = model.run_pack

    def call(*given):
        out = wrapped(*given)
        if not torch.is_grad_enabled():  # no backward will give the gathered weights back
            model.reshard()
        return out
    return call


def share_of(whole: torch.Tensor, parts: int, number: int) -> torch.Tensor:
    """The rows of a tensor that process `number` of `parts` holds; none where there are fewer rows than processes."""
    chunks = whole.chunk(parts)
    return chunks[number] if number < len(chunks) else whole[:0]
