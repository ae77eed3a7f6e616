"""How pairs are laid into packs never changes the loss or the gradient of what learns from preferences."""

import numpy as np
import pytest
import torch
from test_layout import VOCAB, gradient, model

from posttrain.core.sequence import Sequence
from posttrain.model.heads import make_heads
from posttrain.model.probe import prepare_forward
from posttrain.train.objective import Models
from posttrain.train.objectives.dpo import DPO, LOSSES
from posttrain.train.objectives.kto import KTO
from posttrain.train.objectives.orpo import ORPO
from posttrain.train.objectives.reward import Reward
from posttrain.train.reference import Reference
from posttrain.train.update import accumulate, evaluate, lay_packs

LENGTHS = ((7, 9), (30, 7), (31, 33), (12, 25, 18), (8, 40), (5, 6))  # one is a ranking of three


def atoms():
    rng = np.random.default_rng(0)
    made = []
    for n, lengths in enumerate(LENGTHS):
        prompt = rng.integers(0, VOCAB, 3)
        made.append([Sequence(np.r_[prompt, rng.integers(0, VOCAB, k - 3)].astype(np.int32),
                              np.array([0] * 3 + [1] * (k - 3), np.float32), np.zeros(k, np.uint8), f"row:{n}", 0,
                              {"rank": -float(i), "margin": 0.1 * (i == 0), "label": float(i == 0)})
                     for i, k in enumerate(lengths)])
    return made


OBJECTIVES = {kind: DPO(kind, 0.5, 0.1 * (kind in ("sigmoid", "robust"))) for kind in LOSSES} | {
    "rpo": DPO("sigmoid", 0.5, rpo_alpha=1.5), "reward": Reward(0.01), "orpo": ORPO(0.2), "kto": KTO(0.1, 1.5, 0.5)}


def ours(made, objective, forward, groups):
    made.zero_grad()
    for head in forward.heads.values():
        head.zero_grad()
    models = Models(forward, Reference(forward))
    (packs,) = objective.collect([p for group in groups for p in lay_packs(group, 256)], models)
    means = accumulate(models, objective, packs, seed=0, step=1)
    grad = torch.cat([gradient(made), *(h.weight.grad.flatten() for h in forward.heads.values())])
    held = evaluate(models, objective, packs)
    assert abs(held["loss"] - means["loss"]) < 1e-5 * abs(means["loss"])
    return means, grad


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-9), (torch.float32, 2e-5)], ids=str)
def test_layout_changes_nothing(name, dtype, close):
    objective, made = OBJECTIVES[name], model(dtype, lora=True)
    rows = objective.arrange(atoms())
    forward, _ = prepare_forward(made)
    forward.heads = make_heads(made, objective.needs, 0).to(dtype)
    means, grad = ours(made, objective, forward, [rows])
    assert grad.norm() > 0 and (name != "kto" or means["kl"] != 0)
    cuts = {"one by one": [[a] for a in rows], "uneven": [rows[:1], rows[1:5], rows[5:]],
            "another order": [rows[::-1][:3], rows[::-1][3:]]}
    for cut, groups in cuts.items():
        other, other_grad = ours(made, objective, forward, groups)
        assert other.keys() == means.keys()
        assert all(abs(other[n] - means[n]) <= close * max(1, abs(means[n])) for n in means), cut
        assert (other_grad - grad).norm() <= close * grad.norm(), cut


def labelled(*prompts):
    """Answers to these prompts, each prompt two tokens of its own, each answer two tokens of its place."""
    return [[Sequence(np.array([p, p, 100 + n, 200 + n], np.int32), np.array([0, 0, 1, 1], np.float32),
                      np.zeros(4, np.uint8), f"row:{p}", 0, {"label": float(n % 2 == 0)}, n)]
            for n, p in enumerate(prompts)]


@pytest.mark.parametrize(("prompts", "others"), [
    ([1, 2, 3], [1, 2, 0]), ([1, 1, 2, 2, 3, 3], [2, 3, 4, 5, 0, 1]), ([1, 1, 1, 2], [3, 3, 3, 0]),
    ([1, 2, 2, 1], [2, 3, 0, 1]), ([1, 1, 2], [2, 2, 0]), ([4], None), ([4, 4, 4], None)], ids=str)
def test_a_mismatched_answer_is_to_another_prompt(prompts, others):
    """Of pairs too, whose answers lie beside each other; each of theirs serves once."""
    rows = labelled(*prompts)
    made = KTO().arrange(rows)
    assert [a[0] for a in made] == [s for (s,) in rows] and all(a[0].facts["mismatch"] == 0 for a in made)
    if others is None:
        assert [len(a) for a in made] == [1] * len(prompts)
        return
    assert [a[1].ids.tolist() for a in made] == [[p, p, 100 + j, 200 + j] for p, j in zip(prompts, others, strict=True)]
    assert all(a[1].facts["mismatch"] == 1 and a[1].weights.tolist() == [0, 0, 1, 1] for a in made)


@pytest.mark.parametrize(("prompts", "mismatched"), [
    ([1, 1, 2, 2, 3, 3], [(1, 2), (1, 3), (2, 4), (2, 5), (3, 0), (3, 1)]), ([4, 4, 4], [])], ids=str)
def test_z_is_the_papers(prompts, mismatched):
    """max(0, mean of log π(y_j|x_i) − log π_ref(y_j|x_i)), each in a forward of its own; 0 where there is none."""
    made = model(torch.float64, lora=True)
    forward, _ = prepare_forward(made)
    forward.heads = make_heads(made, {"logprobs"}, 0)
    models = Models(forward, Reference(forward))
    objective = KTO(0.5)
    (packs,) = objective.collect(lay_packs(objective.arrange(labelled(*prompts)), 20), models)
    moved = []
    for p, j in mismatched:
        (pack,) = lay_packs([[Sequence(np.array([p, p, 100 + j, 200 + j], np.int32), np.array([0, 0, 1, 1], np.float32),
                               np.zeros(4, np.uint8), "x")]], 20)
        with torch.no_grad():
            now = float((forward(pack).logprobs_T * pack.weights_T).sum())
        moved.append(now - float(models.reference.answers(pack)[0]))
    z = max(0.0, sum(moved) / len(moved)) if moved else 0.0
    assert sum(len(p.lengths) for p in packs) == len(prompts)
    assert all(torch.allclose(p.columns["z"], torch.full_like(p.columns["z"], z), atol=1e-12) for p in packs)


def test_a_ranking_that_no_pack_holds_is_taken_apart():
    made, rows = model(torch.float64, lora=True), atoms()
    forward, _ = prepare_forward(made)
    forward.heads = make_heads(made, {"scores"}, 0)
    objective, found = Reward(), []
    for room in (256, 64):
        made.zero_grad()
        packs = lay_packs(rows, room)
        assert max(p.bounds[-1] for p in packs) <= room and sum(objective.size(p) for p in packs) == 5 + 3
        means = accumulate(Models(forward), objective, packs, seed=0, step=1)
        found.append((means, gradient(made)))
    (one, grad), (two, other) = found
    assert abs(one["loss"] - two["loss"]) < 1e-12 and (grad - other).norm() < 1e-9 * grad.norm()
