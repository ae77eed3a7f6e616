"""Which of a run's processes this is, and what they tell each other; alone, every call costs nothing.

A launcher (torchrun, `--processes`, Ray Train) says through the environment how many processes there are and which one
this is. torch is imported only to talk.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import UserError

GO_ON = "go on with resume: the last checkpoint is good"
TOLD = "posttrain-told"  # in the folder of a start: what ended it is no lost process
_store = None  # the launcher's, common to all processes of this start
_begun = False


def world() -> int:
    """How many processes compute this run."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "RANK" in os.environ else 1


def rank() -> int:
    """The number of this process, 0 … world - 1."""
    return int(os.environ["RANK"]) if world() > 1 else 0


def first() -> bool:
    """Whether this process writes the run's files and speaks for all."""
    return rank() == 0


def launched() -> bool:
    """Whether a launcher started this process, alone or beside others."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def restarts() -> int:
    """How often the launcher has started the processes again after one was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if launched() else 0


def begin(device: str) -> None:
    """Join the other processes; `device` is the settings' key. On CUDA each takes the GPU of its number."""
    global _store, _begun
    if world() == 1:
        return
    import torch
    import torch.distributed as dist

    cuda = torch.cuda.is_available() and not device.startswith("cpu")
    if cuda:
        _take_gpu(device)
    if not dist.is_initialized():  # Ray Train has done so
        found, number, size = next(dist.rendezvous("env://"))
        _store = dist.PrefixStore(meet(found, number, size), found)
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=_store, rank=number, world_size=size)
        _begun = True


def meet(store, number: int, size: int, patience: float = 600) -> str:
    """A name for this start that all its processes, and no earlier ones, know.

    A launcher that restarts lost processes keeps its store, with the addresses of those that are gone; how often each
    machine's launcher has restarted may differ. So each process shows a name of its own, the first answers it with
    its own, and goes on when all have confirmed (test_ranks_alone.py::test_a_restart_knows_its_own).
    """
    mine, until = f"{os.getpid()}.{time.time_ns()}", time.monotonic() + patience
    if number:
        store.set(f"posttrain/here/{number}", mine)
        start = store.get(f"posttrain/answer/{mine}").decode()
        store.set(f"posttrain/heard/{start}/{number}", "1")
        return start
    for other in range(1, size):
        while not store.check([f"posttrain/heard/{mine}/{other}"]):
            if time.monotonic() > until:
                raise LostError("a process of this run did not come", where=f"process {other} of {size}",
                                fix="see what it printed; then start again with resume")
            if store.check([f"posttrain/here/{other}"]):
                store.set(f"posttrain/answer/{store.get(f'posttrain/here/{other}').decode()}", mine)
            time.sleep(0.01)
    return mine


def _take_gpu(device: str) -> None:
    import torch

    if ":" in device:
        raise UserError("several processes cannot share one GPU", where="device", found=device,
                        fix="use device: cuda, and choose GPUs by CUDA_VISIBLE_DEVICES")
    here, local = torch.cuda.device_count(), int(os.environ.get("LOCAL_RANK", 0))
    if local >= here:
        raise UserError("there are more processes than GPUs", where="device",
                        found=f"{os.environ.get('LOCAL_WORLD_SIZE', local + 1)} processes, {here} GPUs on this machine",
                        fix=f"start at most {here} processes a machine, or use device: cpu")
    torch.cuda.set_device(local)


def end() -> None:
    """Leave the other processes."""
    global _begun, _store
    if _begun:
        import torch.distributed as dist

        dist.destroy_process_group()
        _begun, _store = False, None


def add_up(values: Sequence[float]) -> list[float]:
    """Each number's sum over the processes, in float64."""
    return _reduced(values, "SUM")


def largest(values: Sequence[float]) -> list[float]:
    """Each number's largest value over the processes."""
    return _reduced(values, "MAX")


def any_of(flag: bool) -> bool:
    """Whether it is so in any process."""
    return bool(largest([float(flag)])[0])


def differs(value: int) -> bool:
    """Whether the processes hold different numbers."""
    high, low = largest([float(value), -float(value)])
    return high != -low


def gathered(value: Any) -> list[Any]:
    """Each process's value, in the order of their numbers."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    found: list[Any] = [None] * world()
    dist.all_gather_object(found, value)
    return found


def wait() -> None:
    """Until every process has come here."""
    any_of(False)


def _reduced(values: Sequence[float], how: str) -> list[float]:
    if world() == 1:
        return [float(v) for v in values]
    import torch
    import torch.distributed as dist

    numbers = torch.tensor([float(v) for v in values], dtype=torch.float64)
    if not str(dist.get_backend_config()).count("gloo"):  # another's group that knows GPUs only
        numbers = numbers.cuda()
    dist.all_reduce(numbers, getattr(dist.ReduceOp, how))
    return numbers.tolist()


@contextmanager
def one_after_the_first() -> Iterator[None]:
    """The first process does what stands inside before the others do: they then find the files that it made."""
    if not first():
        wait()
    yield
    if first():
        wait()


@contextmanager
def together() -> Iterator[None]:
    """Inside it a peer that no longer answers is one clear error."""
    try:
        yield
    except RuntimeError as e:
        if world() == 1 or not _is_loss(e):
            raise
        raise LostError("a process of this run was lost", where=f"noticed by process {rank()} of {world()}",
                        found=str(e).strip().split("\n")[0][:200], fix=GO_ON) from None


class LostError(UserError):
    """Another process of the run ended without a word."""


def _is_loss(e: RuntimeError) -> bool:
    said = str(e)
    return type(e).__name__ in ("DistBackendError", "DistNetworkError") or any(
        sign in said for sign in ("Connection closed by peer", "Connection reset by peer", "gloo/transport"))


def may_tell(error: BaseException) -> bool:
    """Whether this process should print an error: of all processes that fail, one does.

    Before they have met (a mistyped key), the first one does, and another only where it is still there after a while.
    """
    if world() == 1:
        return True
    if told_before():
        return False
    if isinstance(error, LostError) and os.environ.get("POSTTRAIN_LAUNCHER"):
        return False  # which one, and how it ended, the launcher knows and tells
    if isinstance(error, LostError):
        time.sleep(1)  # the process that has the cause to tell comes first
    tells = True
    if _store is not None:
        with suppress(RuntimeError):  # it lay in a process that is gone
            tells = _store.add("posttrain/errors", 1) == 1
    elif not first():
        time.sleep(3)
    if not isinstance(error, LostError) and (start := _start_folder()):
        (start / TOLD).touch()
    return tells


def told_before() -> bool:
    """Whether an error ended an earlier start of these processes: it would end this one too, and is told already."""
    start = _start_folder() if restarts() else None
    return start is not None and any(path.parent != start for path in start.parent.glob(f"*/{TOLD}"))


def _start_folder() -> Path | None:
    """The folder that torchrun keeps for this start of its processes, beside those of earlier ones; None without it."""
    file = os.environ.get("TORCHELASTIC_ERROR_FILE", "") if launched() else ""
    folder = Path(file).parent.parent  # …/attempt_0/RANK/error.json
    return folder if file and folder.name == f"attempt_{restarts()}" and folder.is_dir() else None
