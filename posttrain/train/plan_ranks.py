"""What several GPUs hold, send and gain, on paper: full fine-tuning in shards, adapters as plain data parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..model.shard import layers_of

# On paper: an H100 SXM's dense bf16 product (data sheet) at the share that large trainings reach, NVLink and one
# 400 Gb/s network card per GPU, each in one direction.
SPEED, NVLINK, NETWORK, NODE = 989e12 * 0.4, 450e9, 50e9, 8


@dataclass(frozen=True, slots=True)
class Job:
    """One method on one model: parameters (all, trained, the largest layer's, those outside of layers), bytes of a
    number in the compute type, bytes held on one GPU and those of them that a pack's tokens take, and a pack's work."""

    sharded: bool
    total: int
    trained: int
    layer: int
    root: int
    size: int
    alone: int
    of_pack: int
    flops: float


@dataclass(frozen=True, slots=True)
class Spread:
    """A job on some GPUs: bytes a GPU holds, bytes it sends per update of one pack each, seconds, and the gain."""

    gpus: int
    memory: int
    sent: int
    computing: float
    sending: float
    speedup: float


def spread(job: Job, gpus: int) -> Spread:
    """A job on so many GPUs, one pack on each: an update grows with them.

    Shards (Rajbhandari et al. 2020, stage 3): each GPU keeps 1/N of master, gradient and both moments, 16 bytes a
    parameter; two layers and what lies outside of layers are whole for a while. Per pack the weights are gathered
    twice and the gradient is summed once in float32, (N − 1)/N of each, beside the computing. Adapters: a ring sums
    the float32 gradients, 2 (N − 1)/N of them, after it.
    """
    others = (gpus - 1) / gpus
    if job.sharded and gpus > 1:
        gathered = (job.root + 2 * job.layer) * job.size + (job.root + job.layer) * (job.size + 4)
        memory, sent = 16 * job.total // gpus + gathered + job.of_pack, others * job.total * (2 * job.size + 4)
    else:
        memory, sent = job.alone + (4 * job.trained if gpus > 1 else 0), 2 * others * job.trained * 4
    computing, sending = job.flops / SPEED, sent / (NVLINK if gpus <= NODE else NETWORK)
    seconds = max(computing, sending) if job.sharded else computing + sending
    return Spread(gpus, int(memory), int(sent), computing, sending, gpus * computing / seconds)


def job_of(planner: Any, method: str, tokens: int, checkpointing: bool) -> Job:
    """A method as a plan of one GPU knows it, on packs of so many tokens."""
    layers = [sum(p.numel() for p in layer.parameters()) for layer in layers_of(planner.model)]
    sizes = planner.sizes(method, tokens, checkpointing, False)
    return Job(method == "full", planner.total, planner.trained(method), max(layers, default=0),
               planner.total - sum(layers), planner.dtype.itemsize, sizes.peak, sizes.activations + sizes.logprobs,
               planner.flops(method, checkpointing) * tokens)


def spreads(planner: Any, processes: int, tokens: int, checkpointing: bool) -> dict[str, list[Spread]]:
    """{method: its spread over 1, 2, 4, … and `processes` GPUs}."""
    counts = sorted({processes, *(1 << i for i in range(processes.bit_length()) if 1 << i <= processes)})
    jobs = {method: job_of(planner, method, tokens, checkpointing) for method in ("full", "lora")}
    return {method: [spread(job, n) for n in counts] for method, job in jobs.items()}
