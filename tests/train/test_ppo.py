"""PPO and GRPO: what one collection makes of sampled answers, and that layout and company change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.core.config import make_settings
from posttrain.core.pack import make_pack
from posttrain.core.sequence import Row, Sequence
from posttrain.model.adapters import add_lora
from posttrain.model.heads import ScalarHead
from posttrain.model.probe import prepare_forward
from posttrain.model.roles import CRITIC, POLICY, Role, Switch, add_critic
from posttrain.train.advantages import gae, whiten
from posttrain.train.objective import Models
from posttrain.train.objectives import make_objective
from posttrain.train.rollout import Rollout
from posttrain.train.update import accumulate

STOPS = [5, 9, 11, 17, 23]


class Spec:
    stop_ids = STOPS

    def decode(self, ids):
        return " ".join(map(str, ids))


def stage(dtype=torch.float64, **values):
    """An objective and its models on a tiny base whose adapters are no zeros; the score is an answer's ids mod 7."""
    asked = {"objective": "ppo", "reward": "exact", "batch_size": 4, "max_length": 64, "max_new_tokens": 12,
             "temperature": 0.9, "pack_tokens": 80, "minibatches": 2}
    settings = make_settings(asked | values)
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                         num_attention_heads=4, num_key_value_heads=2, head_dim=8))
    model = add_lora(model, r=4, alpha=8, dropout=0.0, targets=["all-linear"], seed=0)
    add_critic(model, seed=0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.1)
    model.to(dtype)
    forward, _ = prepare_forward(model)
    forward.heads = torch.nn.ModuleDict({"value": ScalarHead(32, torch.promote_types(dtype, torch.float32))})
    forward.heads["value"].weight.data.normal_(std=0.3)
    switch = Switch(model, (POLICY, CRITIC))
    actor = Role(forward, switch, POLICY)
    rollout = Rollout(actor, Spec(), max_new_tokens=12, temperature=settings.temperature, seed=1)
    models = Models(actor, reference=Role(forward, switch, None), critic=Role(forward, switch, CRITIC),
                    reward=lambda answers: [float(a.sequence.ids.sum() % 7) for a in answers], rollout=rollout)
    return make_objective(settings), models, forward


def atoms(n=6):
    draw = np.random.default_rng(2)
    rows = [Row("prompt", f"p:{i}", messages=[{"role": "user", "content": str(i)}]) for i in range(n)]
    made = [Sequence(draw.integers(3, 60, draw.integers(2, 9)).astype(np.int32), np.zeros(0), np.zeros(0, np.uint8),
                     row.origin, row=row, number=i) for i, row in enumerate(rows)]
    for s in made:
        s.weights, s.reasons = np.zeros(len(s), np.float32), np.zeros(len(s), np.uint8)
    return [[s] for s in made]


def prompts():
    made = [s for atom in atoms() for s in atom]
    return [make_pack(made[:2]), make_pack(made[2:])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_first_ratio_is_one(kind, dtype):
    """To the bit: the sampling policy's log-probs come from the packs and the forward that train."""
    objective, models, _ = stage(dtype, objective=kind, **({"num_generations": 3} if kind == "grpo" else {}))
    batch = next(objective.collect(prompts(), models))
    for pack in batch:
        with torch.enable_grad():
            out = models.policy(pack, {"logprobs"}, objective.temperature)
        where = pack.weights_T != 0
        assert torch.equal(out.logprobs_T[where], pack.columns["old"][where])
    means = accumulate(models, objective, batch, 0, 1)
    assert means["ratio"] == 1.0 and means["approx_kl"] == 0.0 and means["clip_fraction"] == 0.0


def test_the_columns_are_the_textbooks():
    """Advantages and returns of every token, from the definitions, answer by answer and whitened over all."""
    objective, models, _ = stage(kl_coef=0.3, gae_lambda=0.9, missing_eos_penalty=2.0)
    packs = [pack for batch in objective.collect(prompts(), models) for pack in batch]
    packs = list({id(p): p for p in packs}.values())  # both epochs see the same ones
    answers = {a.sequence.origin: a for a in models.rollout(prompts(), 0)}
    scores = {o: float(a.sequence.ids.sum() % 7) for o, a in answers.items()}
    mean, deviation = np.mean(list(scores.values())), np.std(list(scores.values()))
    raw, told, returns = [], [], []
    for pack in packs:
        for a, b, origin in zip(pack.bounds, pack.bounds[1:], pack.origins, strict=False):
            at = slice(a, b)
            on = pack.weights_T[at] != 0
            old, ref, value = (pack.columns[n][at][on] for n in ("old", "reference", "values"))
            rewards = -0.3 * (old - ref)
            rewards[-1] += (scores[origin] - mean) / deviation - (0 if answers[origin].stopped else 2.0)
            raw.append(gae(rewards, value, [len(value)], lam=0.9))
            told.append(pack.columns["advantages"][at][on])
            returns.append((pack.columns["returns"][at][on], raw[-1] + value))
    assert any(a.stopped for a in answers.values()) and not all(a.stopped for a in answers.values())
    assert torch.allclose(torch.cat(told), whiten(torch.cat(raw)), atol=1e-9)
    assert all(torch.allclose(one, two, atol=1e-9) for one, two in returns)


def laid(packs, cut):
    """The same answers with their columns in other packs."""
    pieces = []
    for pack in packs:
        for a, b in zip(pack.bounds, pack.bounds[1:], strict=False):
            weights = torch.cat([torch.zeros(1), pack.weights_T[a:b - 1]])
            row = Sequence(pack.ids_T[a:b].numpy(), weights.numpy(), np.zeros(b - a, np.uint8), "x")
            pieces.append((row, {n: c[a:b] for n, c in pack.columns.items() if len(c) == len(pack.ids_T)}))
    made = []
    for i in range(0, len(pieces), cut):
        part = pieces[i:i + cut]
        made.append(make_pack([row for row, _ in part]))
        made[-1].columns = {n: torch.cat([c[n] for _, c in part]) for n in part[0][1]}
    return made


def gradients(objective, models, packs):
    named = [(n, p) for n, p in (*models.policy.forward.model.named_parameters(),
                                 *models.policy.forward.heads.named_parameters()) if p.requires_grad]
    for _, p in named:
        p.grad = None
    means = accumulate(models, objective, packs, 0, 1)
    return means, {n: p.grad for n, p in named}


@pytest.mark.parametrize("kind", [{}, {"objective": "grpo", "num_generations": 2, "kl_coef": 0.1},
                                  {"objective": "grpo", "num_generations": 2, "length_norm": "sequence"},
                                  {"objective": "grpo", "num_generations": 2, "length_norm": "constant",
                                   "advantages": "rloo"}], ids=str)
def test_layout_changes_nothing(kind):
    objective, models, _ = stage(entropy_coef=0.01, minibatches=1, **kind)
    packs = next(objective.collect(prompts(), models))
    for pack in packs:  # as after some updates: the policy is not what it was
        pack.columns["old"] = pack.columns["old"] + 0.3 * torch.sin(torch.arange(len(pack.ids_T))) * pack.weights_T
    means, whole = gradients(objective, models, laid(packs, 100))
    for cut in (1, 2, 5):
        again, other = gradients(objective, models, laid(packs, cut))
        for name in means:
            assert again[name] == pytest.approx(means[name], rel=1e-9), name
        for name, grad in whole.items():
            if grad is None:
                assert other[name] is None
            else:
                assert (other[name] - grad).norm() <= 1e-9 * max(grad.norm(), 1e-3), name


def test_two_passes_are_one_gradient():
    """Actor and critic each learn from their own loss alone, and every role's adapter keeps its gradient."""
    objective, models, forward = stage(minibatches=1)
    packs = next(objective.collect(prompts(), models))
    _, found = gradients(objective, models, packs)
    actor, critic = ({n for n, g in found.items() if g is not None and f".{r}." in n} for r in (POLICY, CRITIC))
    assert actor and len(actor) == len(critic) and found["value.weight"].norm() > 0
    assert all(found[n].norm() > 0 for n in actor | critic if "lora_B" in n)
    objective.state["collection"], objective.settings = 0, objective.settings.model_copy(update={"critic_warmup": 1})
    _, alone = gradients(objective, models, packs)
    assert all(alone[n] is None for n in actor), "in its warm-up the critic learns alone"
    assert all(torch.equal(alone[n], found[n]) for n in critic)


def test_at_ratio_one_grpo_is_reinforce():
    objective, models, forward = stage(objective="grpo", num_generations=3, minibatches=1, kl_coef=0.0)
    packs = next(objective.collect(prompts(), models))
    _, found = gradients(objective, models, packs)
    models.policy.forward.model.zero_grad()
    tokens = sum(float(p.weights_T.sum()) for p in packs)
    for pack in packs:
        logprobs_T = models.policy(pack, {"logprobs"}, objective.temperature).logprobs_T
        (-(pack.columns["advantages"] * logprobs_T).sum() / tokens).backward()
    for name, p in models.policy.forward.model.named_parameters():
        if f".{POLICY}." in name and "lora" in name:
            assert torch.allclose(p.grad, found[name], atol=1e-12)


@pytest.mark.parametrize("kind", ["grpo", "dr_grpo", "batch", "rloo"])
def test_advantages_are_of_the_raw_scores(kind):
    """In the second collection as in the first: no running statistics, and the penalty in units of the score."""
    objective, models, _ = stage(objective="grpo", num_generations=3, advantages=kind, missing_eos_penalty=2.5)
    for collection in range(2):
        answers = models.rollout(prompts(), collection, 3)
        assert {a.stopped for a in answers} == {True, False}
        told = objective._judge(answers, models)
        assert told == [float(a.sequence.ids.sum() % 7) for a in answers]
        worth = [s - (0 if a.stopped else 2.5) for s, a in zip(told, answers, strict=True)]
        groups = [worth[i:i + 3] for i in range(0, len(worth), 3)]
        centred = [r - sum(g) / 3 for g in groups for r in g]
        over_all = (sum(c * c for c in centred) / len(centred)) ** 0.5
        for n, (answer, c) in enumerate(zip(answers, centred, strict=True)):
            group = groups[n // 3]
            expected = {"grpo": c / (np.std(group) + 1e-4), "dr_grpo": c, "batch": c / (over_all + 1e-4),
                        "rloo": worth[n] - (sum(group) - worth[n]) / 2}[kind]
            assert answer.sequence.facts["advantage"] == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_samplers_gap_is_of_each_token():
    """Gaps of both signs do not cancel, and each answer is held against itself, wherever it lies."""
    objective, models, _ = stage()
    sample = models.rollout

    def off(packs, collection, group=1, greedy=False):
        made = sample(packs, collection, group, greedy)
        for a in made:
            a.logprobs = [x + 0.5 * (-1) ** i for i, x in enumerate(a.logprobs)]
        return made[::-1]

    next(objective.collect(prompts(), models))
    assert objective.facts["sampler_gap"] < 1e-6
    models.rollout = off
    next(objective.collect(prompts(), models))
    assert objective.facts["sampler_gap"] == pytest.approx(0.5, abs=1e-6)


def test_a_small_move_ends_a_collection():
    objective, models, _ = stage(early_stop_kl=0.01)
    batches = objective.collect(prompts(), models)
    next(batches), next(batches)
    objective.updated({"approx_kl": 0.02, "ratio": 1.0})
    assert next(batches, None) is None and objective.state["collection"] == 1


def test_the_coefficient_is_steered():
    objective, _, _ = stage(kl_coef=0.1, kl_target=2.0)
    for kl, expected in ((2.2, 0.1 * 1.01), (200.0, 0.1 * 1.02), (0.0, 0.1 * 0.98), (2.0, 0.1)):
        objective.state["kl_coef"], objective.facts = 0.1, {"kl": kl}
        objective._adapt()
        assert objective.state["kl_coef"] == pytest.approx(expected)


def test_slots_change_nothing():
    _, models, _ = stage()
    whole = models.rollout(prompts(), 3, group=2)
    models.rollout.slots = 2
    few = models.rollout(prompts(), 3, group=2)
    assert [a.sequence.ids.tolist() for a in whole] == [a.sequence.ids.tolist() for a in few]
    assert [a.row.origin for a in whole] == [f"p:{i // 2}" for i in range(12)]
    other = models.rollout(prompts(), 4, group=2)
    assert [a.sequence.ids.tolist() for a in whole] != [a.sequence.ids.tolist() for a in other]
    assert all(a.sequence.weights.sum() == a.length == len(a.logprobs) for a in whole)
