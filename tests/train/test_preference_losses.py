"""Each loss of preferences equals its formula, written out in float64 from its paper; and TRL's where that is there."""

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from posttrain.core.pack import make_pack
from posttrain.core.sequence import Sequence
from posttrain.model.forward import Outputs
from posttrain.train.objective import Models
from posttrain.train.objectives.dpo import DPO
from posttrain.train.objectives.kto import KTO
from posttrain.train.objectives.orpo import ORPO, log_odds
from posttrain.train.objectives.reward import Reward
from posttrain.train.pairs import pairs

ROOT = Path(__file__).resolve().parent.parent.parent
LENGTHS = ((4, 7), (9, 3), (5, 5), (2, 11))  # answer tokens of the better and the worse
BETA, EPS, GAMMA, CENTER = 0.3, 0.1, 0.7, 0.01


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.fixture
def batch():
    """A pack of four pairs with random log-probs, reference log-probs, scores and margins."""
    rng = np.random.default_rng(0)
    atoms, facts = [], []
    for n, lengths in enumerate(LENGTHS):
        margin = float(rng.random())
        facts.append(margin)
        atoms.append([Sequence(rng.integers(0, 99, 3 + k).astype(np.int32), np.array([0] * 3 + [1] * k, np.float32),
                               np.zeros(3 + k, np.uint8), f"row:{n}", 0, {"rank": 1.0 - i, "margin": margin * (1 - i)})
                      for i, k in enumerate(lengths)])
    pack = make_pack([s for a in atoms for s in a], [2] * 4)
    logprobs_T = torch.from_numpy(-rng.random(len(pack.ids_T)) * 3) * pack.weights_T
    reference_S = torch.from_numpy(-rng.random(8) * 20)
    pack.columns["reference"] = reference_S
    scores_S = torch.from_numpy(rng.normal(size=8))
    sums = [x.sum().item() for x in logprobs_T.split(pack.lengths)]
    return pack, Outputs(logprobs_T=logprobs_T, scores_S=scores_S), sums, reference_S.tolist(), facts


def by_hand(kind, w, v, ref_w, ref_v, n_w, n_v):
    """One pair's loss from the sums of log-probs, as the paper has it."""
    h = (w - ref_w) - (v - ref_v)
    if kind == "sigmoid":
        return -(1 - EPS) * math.log(sigmoid(BETA * h)) - EPS * math.log(sigmoid(-BETA * h))
    if kind == "robust":
        return (-(1 - EPS) * math.log(sigmoid(BETA * h)) + EPS * math.log(sigmoid(-BETA * h))) / (1 - 2 * EPS)
    if kind == "ipo":
        return ((w - ref_w) / n_w - (v - ref_v) / n_v - 1 / (2 * BETA)) ** 2
    if kind == "hinge":
        return max(0.0, 1 - BETA * h)
    return -math.log(sigmoid(BETA * w / n_w - BETA * v / n_v - GAMMA))


@pytest.mark.parametrize("kind", ["sigmoid", "robust", "ipo", "hinge", "simpo"])
def test_dpo_is_its_paper(batch, kind):
    pack, out, sums, ref, _ = batch
    loss, logged = DPO(kind, BETA, EPS, GAMMA).loss(out, pack)
    expected = sum(by_hand(kind, *sums[2 * p:2 * p + 2], *ref[2 * p:2 * p + 2], *LENGTHS[p]) for p in range(4))
    assert abs(loss.item() - expected) < 1e-9
    assert 0 <= logged["accuracy"] <= 4 and DPO(kind).size(pack) == 4


def test_the_better_answers_own_loss_is_its_mean_over_tokens(batch):
    """Pang et al. 2024, eq. 1: α times the negative mean log-prob of the better answer, whatever the reference."""
    pack, out, sums, _, _ = batch
    plain, own = (DPO("sigmoid", BETA, rpo_alpha=alpha).loss(out, pack)[0].item() for alpha in (0.0, 1.5))
    assert abs(own - plain + 1.5 * sum(sums[2 * p] / LENGTHS[p][0] for p in range(4))) < 1e-9


def test_reward_is_bradley_terry(batch):
    pack, out, _, _, margins = batch
    s = out.scores_S.tolist()
    expected = sum(-math.log(sigmoid(s[2 * p] - s[2 * p + 1] - margins[p])) + CENTER * (s[2 * p] + s[2 * p + 1]) ** 2
                   for p in range(4))
    loss, logged = Reward(CENTER).loss(out, pack)
    assert abs(loss.item() - expected) < 1e-9
    assert logged["accuracy"].item() == sum(s[2 * p] > s[2 * p + 1] for p in range(4))
    assert abs(logged["score"].item() - sum(s) / 2) < 1e-12
    assert abs(logged["margin"].item() - sum(s[2 * p] - s[2 * p + 1] for p in range(4))) < 1e-12


def test_the_first_loss_is_ln_2(batch):
    pack, out, sums, _, _ = batch
    pack.columns["reference"] = torch.tensor(sums, dtype=torch.float64)
    loss, logged = DPO("sigmoid", BETA).loss(out, pack)
    assert abs(loss.item() / 4 - math.log(2)) < 1e-12 and abs(logged["margin"]) < 1e-12


def test_a_ranking_compares_every_two_whose_ranks_differ():
    def sequence(rank):
        return Sequence(np.arange(3, dtype=np.int32), np.array([0, 1, 1], np.float32), np.zeros(3, np.uint8), "r:1", 0,
                        {"rank": rank, "margin": 0.0})

    pack = make_pack([sequence(r) for r in (3.0, 2.0, 2.0, 5.0, 1.0)], [3, 2])
    assert pairs(pack) == ([0, 0, 3], [1, 2, 4])
    # a reference that does not know the simpo loss is never asked
    assert not DPO("simpo").referenced and next(DPO("simpo").collect([pack], Models(None))) == [pack]


@pytest.mark.slow
def test_the_losses_are_those_of_trl(batch):
    """The trainers of TRL 1.16 on the same log-probs: their loss methods, with a model that gives what it is given."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    if not python.is_file():
        pytest.skip("TRL is not installed here: make bench-peers")
    pack, out, sums, ref, margins = batch
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # TRL lays all chosen before all rejected
    rows = out.logprobs_T.split(pack.lengths)
    longest = max(pack.lengths)
    logps, mask = np.zeros((8, longest - 1)), np.zeros((8, longest), int)
    for i, s in enumerate(order):
        answer = rows[s][2:-1].tolist()
        logps[i, 2:2 + len(answer)] = answer
        mask[i, 3:3 + len(answer)] = 1
    given = {"logps": logps.tolist(), "mask": mask.tolist(), "ref": [ref[s] for s in order], "beta": BETA, "eps": EPS,
             "scores": [out.scores_S[s].item() for s in order], "margins": margins, "center": CENTER,
             "means": [sums[s] / LENGTHS[s // 2][s % 2] for s in order], "labels": [1, 0, 0, 1, 1, 1, 0, 0]}
    done = subprocess.run([python, ROOT / "tests" / "peers" / "trl_losses.py"], input=json.dumps(given),
                          capture_output=True, text=True, timeout=300)
    assert "FOUND" in done.stdout, done.stderr[-2000:]
    found = json.loads(done.stdout.partition("FOUND")[2])
    for kind in ("robust", "ipo", "hinge"):
        assert abs(DPO(kind, BETA, EPS).loss(out, pack)[0].item() / 4 - found[kind]) < 1e-6, kind
    assert abs(DPO("sigmoid", BETA).loss(out, pack)[0].item() / 4 - found["sigmoid"]) < 1e-6
    assert abs(Reward(CENTER).loss(out, pack)[0].item() / 4 - found["reward"]) < 1e-6
    assert abs(ORPO(BETA).loss(out, pack)[0].item() / 4 - found["orpo"]) < 1e-6
    zero, labels = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    labels[order] = torch.tensor(given["labels"], dtype=torch.float64)
    pack.columns |= {"label": labels, "mismatch": zero, "z": zero}
    assert abs(KTO(BETA, 1.5, 0.5).loss(out, pack)[0].item() / 8 - found["kto"]) < 1e-6


def test_orpo_is_its_paper(batch):
    pack, out, sums, _, _ = batch
    expected = 0.0
    for p, (n_w, n_v) in enumerate(LENGTHS):
        w, v = math.exp(sums[2 * p] / n_w), math.exp(sums[2 * p + 1] / n_v)
        odds = (w / (1 - w)) / (v / (1 - v))
        expected += -sums[2 * p] / n_w - BETA * math.log(sigmoid(math.log(odds)))
    loss, logged = ORPO(BETA).loss(out, pack)
    assert abs(loss.item() - expected) < 1e-9
    assert abs(logged["nll"].item() + sum(sums[2 * p] / LENGTHS[p][0] for p in range(4))) < 1e-9
    x = torch.tensor([-1e-12, -1e-4, -0.5, -0.7, -30.0, -800.0], dtype=torch.float64, requires_grad=True)
    log_odds(x).sum().backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(log_odds(x)).all()
    p = x[1:5].exp()
    assert torch.allclose(log_odds(x[1:5]), (p / (1 - p)).log(), atol=1e-9)


def test_kto_is_its_paper(batch):
    pack, out, sums, ref, _ = batch
    labels, z = [1, 0, 0, 1, 1, 1, 0, 0], 0.8
    zero = torch.zeros(8, dtype=torch.float64)
    pack.columns |= {"label": torch.tensor(labels, dtype=torch.float64), "mismatch": zero, "z": zero + z}
    expected = 0.0
    for r, label in zip((s - q for s, q in zip(sums, ref, strict=True)), labels, strict=True):
        value = sigmoid(BETA * (r - z)) if label else sigmoid(BETA * (z - r))
        expected += (1.5 if label else 0.5) * (1 - value)
    objective = KTO(BETA, 1.5, 0.5)
    loss, logged = objective.loss(out, pack)
    assert abs(loss.item() - expected) < 1e-9 and objective.size(pack) == 8 and logged["kl"] == 8 * z
    good, count = logged["reward_good"]
    assert count == 4 and abs(good - BETA * sum(s - q for s, q, y in zip(sums, ref, labels, strict=True) if y)) < 1e-9
