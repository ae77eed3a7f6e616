"""Online DPO: which two answers are a pair, that its loss is DPO's on them, and that layout changes nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_ppo import atoms, gradients, prompts, stage

from posttrain.core.pack import make_pack
from posttrain.model.roles import POLICY, Role
from posttrain.train.rewards import FunctionReward
from posttrain.train.update import accumulate, lay_packs

ASKED = {"objective": "online_dpo", "max_length": 16, "pack_tokens": 60, "minibatches": 1, "beta": 0.3}


def collected(**values):
    objective, models, forward = stage(**(ASKED | values))
    return next(objective.collect(prompts(), models)), objective, models


def sums(models, role, answer, temperature=0.9):
    """Log-prob of one answer, in a pack of its own."""
    pack = make_pack([answer.sequence])
    with torch.no_grad():
        out = role(pack, {"logprobs"}, temperature)
    return float((out.logprobs_T.double() * pack.weights_T).sum())


def test_the_loss_is_the_papers():
    """−log σ(β h), mean over the pairs, from each answer's own forward; the higher score is the better answer."""
    packs, objective, models = collected(missing_eos_penalty=2.0)
    answers = models.rollout(prompts(), 0, group=2)
    scores = [float(a.sequence.ids.sum() % 7) for a in answers]
    deviation = np.std(scores)
    worth = [s / deviation - (0 if a.stopped else 2.0) for s, a in zip(scores, answers, strict=True)]
    losses = []
    for i in range(0, len(answers), 2):
        if abs(worth[i] - worth[i + 1]) > 1e-9:
            better, worse = (i, i + 1) if worth[i] > worth[i + 1] else (i + 1, i)
            w, v = (sums(models, models.policy, answers[n]) - sums(models, models.reference, answers[n])
                    for n in (better, worse))
            losses.append(math.log1p(math.exp(-0.3 * (w - v))))
    means = accumulate(models, objective, packs, 0, 1)
    assert len(losses) > 3 and means["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
    assert sum(float(objective.size(p)) for p in packs) == len(losses)
    assert objective.facts["idle_groups"] == pytest.approx(1 - len(losses) / 6)
    assert "ratio" not in means and "kl_coef" not in objective.facts and means.keys() >= {"accuracy", "margin"}


@pytest.mark.parametrize(("kind", "expected"), [("sigmoid", math.log(2)), ("ipo", (1 / 0.6) ** 2), ("hinge", 1.0)])
def test_at_the_reference_the_loss_knows_nothing(kind, expected):
    """The first update of a run: ln 2 of sigmoid, whatever was sampled."""
    objective, models, forward = stage(**ASKED, loss_type=kind)
    models.reference = Role(forward, models.policy.switch, POLICY)
    packs = next(objective.collect(prompts(), models))
    means = accumulate(models, objective, packs, 0, 1)
    assert means["loss"] == pytest.approx(expected, rel=1e-12) and abs(means["margin"]) < 1e-12
    assert objective.facts["kl"] == objective.facts["k3"] == 0


def test_equal_scores_are_no_pair():
    objective, models, _ = stage(**ASKED)
    models.reward = lambda answers: [1.0 for _ in answers]
    assert list(objective.collect(prompts(), stopping(models))) == [[]] and objective.facts["idle_groups"] == 1.0
    assert objective.state["collection"] == 1
    none = FunctionReward(lambda p, a, r: [None if i == 0 else float(i) for i in range(len(a))], "x")
    none.score.abstains = none.abstains = True
    models.reward = none
    (packs,) = objective.collect(prompts(), stopping(models))
    assert sum(float(objective.size(p)) for p in packs) == 5 and objective.facts["idle_groups"] == 1 / 6
    assert objective.facts["unjudged"] == pytest.approx(1 / 12)
    models.rollout.temperature = 0.0  # both answers are the same one, whatever they are rated
    assert list(objective.collect(prompts(), models)) == [[]] and objective.facts["idle_groups"] == 1.0


def stopping(models):
    """The same models; every answer counts as one that ended, so that scores alone decide."""
    rollout = models.rollout

    def all_ended(packs, collection, group=1, greedy=False):
        made = rollout(packs, collection, group, greedy)
        for answer in made:
            answer.stopped = True
        return made
    return type(models)(models.policy, models.reference, models.critic, models.reward, all_ended)


@pytest.mark.parametrize("kind", ["sigmoid", "ipo", "simpo"])
def test_layout_changes_nothing(kind):
    """Packs of another size, and each pair for itself: the same loss and gradient."""
    beta = {"sigmoid": 0.3, "ipo": 0.3, "simpo": 2.0}[kind]
    packs, objective, models = collected(loss_type=kind, beta=beta)
    means, whole = gradients(objective, models, packs)
    wide, other, same = collected(loss_type=kind, beta=beta, pack_tokens=1000)
    assert len(packs) > len(wide) == 1
    answers = {tuple(a.sequence.ids.tolist()): a.sequence for a in models.rollout(prompts(), 0, group=2)}
    pairs = []
    for pack in wide:
        for n, (a, b) in enumerate(zip(pack.bounds, pack.bounds[1:], strict=False)):
            made = answers[tuple(pack.ids_T[a:b].tolist())]
            made.facts = {name: float(pack.columns[name][n]) for name in ("rank", "reference")}
            pairs.append(made)
    alone = [p for i in range(0, len(pairs), 2) for p in lay_packs([pairs[i:i + 2]], 1000)]
    for which, (objective_, models_) in ((wide, (other, same)), (alone, (objective, models))):
        again, grads = gradients(objective_, models_, which)
        assert again == pytest.approx(means, rel=1e-9, abs=1e-12)
        for name, grad in whole.items():
            assert (grads[name] is None) == (grad is None)
            assert grad is None or (grads[name] - grad).norm() <= 1e-9 * max(grad.norm(), 1e-3), name
    assert any(g is not None and g.norm() > 0 for g in whole.values())


def test_minibatches_share_out_the_pairs():
    objective, models, _ = stage(**(ASKED | {"minibatches": 3}))
    batches = list(objective.collect(prompts(), models))
    pairs = [sum(float(objective.size(p)) for p in batch) for batch in batches]
    assert len(batches) == 3 and max(pairs) - min(pairs) <= 1 and sum(pairs) == round(
        6 * (1 - objective.facts["idle_groups"]))
    assert len(atoms()) == 6
