"""How rows are dealt over processes changes nothing but the last bits: one process against two, through gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import of_two
import pytest

CLOSE = {"float64": 1e-9, "float32": 1e-5}


def start_two(argv: list[str]) -> list[subprocess.Popen]:
    """The same command as process 0 and 1 of two, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                             env={**os.environ, **launched, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in (0, 1)]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """(alone, process 0 of two, process 1 of two), each by name of the combination."""
    out = tmp_path_factory.mktemp("two") / "found"
    processes = start_two([of_two.__file__, str(out)])
    alone = of_two.everything()
    for process in processes:
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return alone, *(json.loads(Path(f"{out}.{rank}").read_text()) for rank in (0, 1))


@pytest.mark.parametrize("kind", ["full", "lora"])
@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("rows", of_two.ROWS)
def test_ranks_change_nothing(results, kind, dtype, rows):
    alone, first, second = (found[f"{kind} {dtype} {rows}"] for found in results)
    assert first == second, "both processes hold the same sums and the same weights"
    for name, value in alone.items():
        assert first[name] == pytest.approx(value, rel=CLOSE[dtype]), name
    assert alone["loss 1"] != alone["loss 2"]
