"""Processes as if they had just started: forked from one that has imported everything and computed nothing."""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORK = multiprocessing.get_context("forkserver")
PRELOADED = ["posttrain.app.train", "posttrain.app.launch", "posttrain.app.particulars", "posttrain.train.session",
             "posttrain.eval.report", "posttrain.data.loader", "peft", "transformers.models.qwen3.modeling_qwen3",
             "transformers.models.auto.modeling_auto", "transformers.models.auto.tokenization_auto"]


def start(target: Callable, *args: Any, log: Path, **environment: str) -> multiprocessing.Process:
    """Call `target` in a process of its own that leads a group; it says LOG.out and LOG.err, and more of both later."""
    FORK.set_forkserver_preload(PRELOADED)
    process = FORK.Process(target=_call, args=(target, args, str(log), environment))
    process.start()
    return process


def start_two(target: Callable, *args: Any, log: Path) -> list[multiprocessing.Process]:
    """The same call as process 0 and 1 of two, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [start(target, *args, log=log.with_name(f"{log.name}{rank}"), **launched, RANK=str(rank),
                  LOCAL_RANK=str(rank)) for rank in (0, 1)]


def said(log: Path) -> str:
    """All that the processes of this log have said."""
    return "".join(p.read_text() for p in sorted(log.parent.glob(f"{log.name}*.*")))


def posttrain(*argv: Any) -> None:
    """`posttrain ARGV`: it ends the process."""
    from posttrain.app.cli import main

    raise SystemExit(main([*map(str, argv)]))


def _call(target: Callable, args: tuple, log: str, environment: dict[str, str]) -> None:
    os.setpgrp()
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.environ |= environment
    target(*args)
