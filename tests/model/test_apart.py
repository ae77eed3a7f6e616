"""Blocks that are mapped apart leave no holes in the heap."""

import subprocess
import sys

import pytest

from posttrain.model import memory

CODE = """
import torch
from posttrain.model.memory import apart

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 >> 20

before, kept, freed = resident(), [], []
with apart():
    for _ in range(40):
        freed.append(torch.ones(1 << 20))  # 4 MiB each
        kept.append(torch.ones(64))
    most = resident() - before
    del freed
    print(most, resident() - before, len(kept))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_what_is_freed_apart_is_given_back():
    """In a process of its own: a heap that has holes already fills them first."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    most, left, _ = map(int, done.stdout.split())
    assert most > 150 and left < 20, "between blocks that stay, freed ones went back to the system"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_a_run_that_maps_blocks_goes_on_after_loading_in_between():
    """Another model in four bits, a reward's, may be loaded within a run that maps them."""
    memory.map_large_blocks(True)
    try:
        with memory.apart():
            pass
        assert memory._mapping
    finally:
        memory.map_large_blocks(False)
    with memory.apart():
        assert memory._mapping
    assert not memory._mapping
