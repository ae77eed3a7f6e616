"""`processes: N`: the same run in N processes of this machine, through torchrun (`torch.distributed.run`)."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import psutil
import yaml
from rich.console import Console

from posttrain.core.config import Settings
from posttrain.core.errors import UserError
from posttrain.core.process import killer
from posttrain.core.status import is_finished

PATIENCE = 300  # seconds that processes have for their update and checkpoint after a signal, before they are killed


def run_processes(settings: Settings, folder: Path, console: Console) -> int:
    """Run `torchrun --nproc-per-node N -m posttrain VERB …` to its end -> 0, or how its processes ended: 2 after an
    error that one of them printed, 130 or 143 after a signal. A process that was killed is a UserError."""
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with tempfile.TemporaryDirectory(prefix="posttrain-") as temporary:
        keys = Path(temporary) / "config.yaml"
        values = settings.model_dump(by_alias=True, exclude_unset=True) | {"output_dir": str(folder)}
        keys.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")
        patience = os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(PATIENCE))
        argv = ["--standalone", "--nproc-per-node", str(settings.processes), "--max-restarts",
                str(settings.max_restarts), "--shutdown-timeout", patience, "--log-dir", temporary, "-m", "posttrain",
                settings.objective, str(keys)]
        try:
            with _quiet(), _environment(settings), _output_of(console):
                torchrun.run(torchrun.parse_args(argv))
        except SignalException as e:
            for process in psutil.Process().children():  # there only where a second signal came: stop at once
                if str(keys) in process.cmdline():
                    process.kill()
            return 0 if is_finished(folder) else 128 + e.sigval
        except ChildFailedError as e:
            return judge(e.failures, settings.objective, folder)
    return 0


def judge(failures, verb: str, folder: Path) -> int:
    """The exit code that the processes ended with; one that was killed without a word is an error.

    SIGTERM is what the launcher then sends to the others: it counts where nothing else is known.
    """
    told = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
    killed = {number: -failure.exitcode for number, failure in sorted(failures.items()) if failure.exitcode < 0}
    causes = {number: by for number, by in killed.items() if by != signal.SIGTERM} or ({} if told else killed)
    for number, by in causes.items():
        raise UserError("a process of this run was lost", where=f"process {number}",
                        found=f"killed by {killer(by)}",
                        fix=f"go on with `posttrain {verb} --output_dir {quote(str(folder))} --resume`: the last "
                            "checkpoint is good; max_restarts does so by itself")
    return min(told)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torchrun's own log lines: what the processes say is enough."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _environment(settings: Settings) -> Iterator[None]:
    """Processor cores shared out among the processes, unless the user has decided."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    added = {"POSTTRAIN_LAUNCHER": str(os.getpid())}
    if "OMP_NUM_THREADS" not in os.environ:
        added["OMP_NUM_THREADS"] = str(max(1, cores // settings.processes))
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _output_of(console: Console) -> Iterator[None]:
    """The processes print where the console does: with `--json` standard output is left to the result."""
    if console.file is sys.stdout:
        yield
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
