"""Blocks that are mapped apart leave no holes in the heap."""

import sys

import pytest
import torch

from posttrain.model.memory import apart


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's mallopt")
def test_what_is_freed_apart_is_given_back():
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    with apart():
        kept, freed = [], []
        for _ in range(40):
            freed.append(torch.ones(1 << 20))  # 4 MiB each
            kept.append(torch.ones(64))
        assert resident() - before > 150 << 20
        del freed
        assert resident() - before < 20 << 20, "between blocks that stay, freed ones went back to the system"
    assert len(kept) == 40
