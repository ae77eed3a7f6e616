"""How rows are laid into packs changes memory and speed, never the loss or the gradient; and both are transformers'."""

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.core.pack import make_pack
from posttrain.core.sequence import Sequence
from posttrain.model.adapters import add_lora
from posttrain.model.noise import EmbeddingNoise
from posttrain.model.probe import prepare_forward
from posttrain.train.objective import Models
from posttrain.train.objectives.sft import SFT
from posttrain.train.update import accumulate, evaluate

LENGTHS = (7, 9, 30, 7, 100, 31, 33, 2)
VOCAB = 300


def sequences():
    """Eight sequences, about 60 % of the tokens trained; one trains a single token."""
    rng = np.random.default_rng(0)
    made = []
    for n in LENGTHS:
        weights = np.r_[0, rng.random(n - 1) < 0.6].astype(np.float32)
        weights[-1] = 1
        made.append(Sequence(rng.integers(0, VOCAB, n).astype(np.int32), weights, np.zeros(n, np.uint8), "row:1",
                             number=len(made)))
    return made


def model(dtype, lora=False):
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16)
    made = Qwen3ForCausalLM(config)
    if lora:
        made = add_lora(made, r=4, alpha=8, dropout=0.0, targets=["all-linear"], seed=0)
        for name, p in made.named_parameters():  # a B of zero would leave A without a gradient
            if "lora_B" in name:
                p.data.normal_(std=0.1)
    return made.to(dtype)


def gradient(made):
    return torch.cat([p.grad.flatten() for p in made.parameters() if p.requires_grad])


def ours(made, groups, objective=None, forward=None):
    made.zero_grad()
    forward = forward or prepare_forward(made)[0]
    means = accumulate(Models(forward), objective or SFT(), [make_pack(g) for g in groups], seed=0, step=1)
    return means["loss"], gradient(made)


CUTS = {"one by one": lambda rows: [[s] for s in rows], "uneven": lambda rows: [rows[:1], rows[1:6], rows[6:]],
        "another order": lambda rows: [rows[::-1][:3], rows[::-1][3:]]}


def padded(made, rows, own_loss=True):
    """All rows in one right-padded batch through transformers' own forward, and its own `labels=` loss.

    That loss casts the logits to float32 whatever the model's type; `own_loss=False` takes the same mean of the same
    logits without the cast.
    """
    made.zero_grad()
    causal = made.get_base_model() if hasattr(made, "get_base_model") else made
    causal.set_attn_implementation("sdpa")
    longest = max(len(s) for s in rows)
    ids, labels, mask = (torch.full((len(rows), longest), fill) for fill in (0, -100, 0))
    for i, s in enumerate(rows):
        ids[i, :len(s)], mask[i, :len(s)] = torch.from_numpy(s.ids).long(), 1
        labels[i, :len(s)] = torch.where(torch.from_numpy(s.weights) > 0, torch.from_numpy(s.ids).long(), -100)
    out = made(input_ids=ids, attention_mask=mask, labels=labels)
    loss = out.loss if own_loss else torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1),
                                                                       labels[:, 1:].flatten())
    loss.backward()
    return loss.item(), gradient(made)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_layout_changes_nothing(lora, dtype, close):
    made, rows = model(dtype, lora), sequences()
    loss, grad = ours(made, [rows])
    for name, cut in CUTS.items():
        other_loss, other = ours(made, cut(rows))
        assert abs(other_loss - loss) <= close * abs(loss), name
        assert (other - grad).norm() <= close * grad.norm(), name
    for own_loss, tolerance in ((False, close), (True, max(close, 1e-6))):
        padded_loss, padded_grad = padded(made, rows, own_loss)
        assert abs(padded_loss - loss) <= tolerance * abs(loss)
        assert (padded_grad - grad).norm() <= tolerance * grad.norm()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
def test_layout_changes_nothing_with_noise_and_smoothing(lora, dtype, close):
    """NEFTune's noise is keyed by sequence and update: it is in the gradient, and the same in any packs."""
    made, rows = model(dtype, lora), sequences()
    _, quiet = ours(made, [rows], SFT(0.1))
    forward, _ = prepare_forward(made)
    forward.noise = EmbeddingNoise(forward.causal.get_input_embeddings(), alpha=15.0, seed=0)
    loss, grad = ours(made, [rows], SFT(0.1), forward)
    assert (grad - quiet).norm() > 0.02 * grad.norm()
    for name, cut in CUTS.items():
        other_loss, other = ours(made, cut(rows), SFT(0.1), forward)
        assert abs(other_loss - loss) <= close * abs(loss), name
        assert (other - grad).norm() <= close * grad.norm(), name
    forward.causal.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    again, other = ours(made, [rows], SFT(0.1), forward)
    assert abs(again - loss) <= close * loss and (other - grad).norm() <= close * grad.norm()
    forward.causal.activation_checkpointing_disable()
    forward.flat = False
    forward.causal.set_attn_implementation("sdpa")
    slow, other = ours(made, [rows], SFT(0.1), forward)
    assert abs(slow - loss) <= close * loss and (other - grad).norm() <= close * grad.norm()
    held = evaluate(Models(forward), SFT(0.1), [make_pack(rows)])["loss"]
    forward.noise = None
    assert evaluate(Models(forward), SFT(0.1), [make_pack(rows)])["loss"] == held  # validation has no noise


def test_the_slow_path_gives_the_same():
    made, rows = model(torch.float64), sequences()
    loss, grad = ours(made, [rows])
    made.zero_grad()
    forward, _ = prepare_forward(made)
    forward.flat = False
    made.set_attn_implementation("sdpa")
    means = accumulate(Models(forward), SFT(), [make_pack(rows)], seed=0, step=1)
    assert abs(means["loss"] - loss) < 1e-12 and (gradient(made) - grad).norm() < 1e-9 * grad.norm()


def test_gradient_checkpointing_changes_nothing():
    made, rows = model(torch.float64), sequences()
    loss, grad = ours(made, [rows[:4], rows[4:]])
    made.train()
    made.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    again, other = ours(made, [rows[:4], rows[4:]])
    assert again == loss and (other - grad).norm() < 1e-12 * grad.norm()


def test_a_mean_of_means_would_be_wrong():
    """Why the sum is divided once: on these very rows the mean of the packs' means is off by more than a percent."""
    made, rows = model(torch.float64), sequences()
    forward, _ = prepare_forward(made)
    groups = [[s] for s in rows]
    whole = evaluate(Models(forward), SFT(), [make_pack(rows)])["loss"]
    means = [evaluate(Models(forward), SFT(), [make_pack(g)])["loss"] for g in groups]
    assert abs(np.mean(means) - whole) > 1e-3 * whole
    assert abs(evaluate(Models(forward), SFT(), [make_pack(g) for g in groups])["loss"] - whole) < 1e-12


def test_the_shift_happens_once():
    rows = sequences()[:2]
    pack = make_pack(rows)
    assert pack.bounds == [0, 7, 16] and pack.lengths == [7, 9]
    assert pack.positions_T.tolist() == [*range(7), *range(9)]
    for s, a in zip(rows, (0, 7), strict=True):
        n = len(s)
        assert pack.targets_T[a:a + n - 1].tolist() == s.ids[1:].tolist()
        assert pack.weights_T[a:a + n].tolist() == [*s.weights[1:].tolist(), 0.0]
