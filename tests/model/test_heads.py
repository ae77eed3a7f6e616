"""Scalar heads: float32 products with the decoder's hidden states, whatever else lies in the pack."""

import numpy as np
import pytest
import torch

from posttrain.core.errors import UserError
from posttrain.core.pack import make_pack
from posttrain.core.sequence import Sequence
from posttrain.model.heads import ScalarHead, make_heads, read_heads
from posttrain.model.load import load_causal
from posttrain.model.probe import prepare_forward
from posttrain.model.resolve import resolve_model

LENGTHS = (5, 9, 3)


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_causal(resolve_model(tiny_model), dtype=torch.float64)


def sequences():
    rng = np.random.default_rng(0)
    return [Sequence(rng.integers(0, 300, n).astype(np.int32), np.r_[0, np.ones(n - 1)].astype(np.float32),
                     np.zeros(n, np.uint8), f"row:{n}") for n in LENGTHS]


def test_a_head_is_a_product():
    head = ScalarHead(3)
    head.weight.data = torch.tensor([[1.0, 2.0, -1.0]])
    out = head(torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.5, 3.0]], dtype=torch.bfloat16))
    assert out.tolist() == [2.0, -2.0] and out.dtype == torch.float32


@pytest.mark.parametrize("flat", [True, False], ids=["flat", "one by one"])
def test_scores_and_values_are_those_of_each_sequence_alone(model, flat):
    forward, _ = prepare_forward(model)
    forward.flat, forward.heads = flat, make_heads(model, {"scores", "values"}, seed=0)
    forward.heads["value"].weight.data.normal_(generator=torch.Generator().manual_seed(1))
    if not flat:
        model.set_attn_implementation("sdpa")
    rows = sequences()
    with torch.no_grad():
        out = forward(make_pack(rows), {"logprobs", "scores", "values"})
        model.set_attn_implementation("sdpa")
        assert out.entropy_T is None and out.logprobs_T.shape == out.values_T.shape == (sum(LENGTHS),)
        for row, score, a in zip(rows, out.scores_S, (0, 5, 14), strict=True):
            ids = torch.from_numpy(row.ids).long()[None]
            hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
            assert abs(score - hidden[-1] @ forward.heads["score"].weight[0]) < 1e-12
            values = hidden @ forward.heads["value"].weight[0]
            assert (out.values_T[a:a + len(row) - 1] - values[:-1]).abs().max() < 1e-12
            assert out.values_T[a + len(row) - 1] == 0  # the last position predicts nothing


def test_the_first_scores_are_drawn_from_the_seed(model):
    a, b, c = (make_heads(model, {"scores"}, seed)["score"].weight for seed in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and abs(a.std() * 65 ** 0.5 - 1) < 0.4
    assert not make_heads(model, {"logprobs"}, 0)


def test_a_head_of_another_width_is_refused():
    heads = read_heads({"heads.value.weight": torch.ones(1, 4), "model.x": torch.ones(2)}, 4, "checkpoint")
    assert list(heads) == ["value"] and heads["value"].weight.sum() == 4
    with pytest.raises(UserError, match="a head does not fit the model") as e:
        read_heads({"heads.value.weight": torch.ones(1, 8)}, 4, "checkpoint")
    assert e.value.found == "heads.value.weight [1, 8]" and e.value.expected == "[1, 4]"
