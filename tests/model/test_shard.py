"""Which rows a process holds, and what cannot be split."""

from __future__ import annotations

import pytest
import torch

from posttrain.core.errors import UserError
from posttrain.model.shard import require_packs, share_of


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8])
def test_shares_are_all_rows_in_order(rows):
    whole = torch.arange(rows * 2.0).view(rows, 2)
    assert torch.equal(torch.cat([share_of(whole, 4, n) for n in range(4)]), whole)


def test_a_model_of_one_sequence_per_forward_is_not_split():
    require_packs(True)
    with pytest.raises(UserError) as e:
        require_packs(False)
    assert "its weights cannot be split over processes" in str(e.value) and "set method: lora" in str(e.value)
