"""TRL's own loss methods on log-probs and scores that are given: JSON in, JSON out. Run by the Python that has TRL."""

import json
import sys
import types
from collections import defaultdict
from contextlib import nullcontext

import torch
from trl.experimental.orpo.orpo_trainer import ORPOTrainer
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.kto_trainer import KTOTrainer
from trl.trainer.reward_trainer import RewardTrainer

GIVEN = json.loads(sys.stdin.read())
ACCELERATOR = types.SimpleNamespace(device=torch.device("cpu"), unwrap_model=lambda m: m, autocast=nullcontext,
                                    gather=lambda x: x, gather_for_metrics=lambda x: x)


def column(name):
    return torch.tensor(GIVEN[name], dtype=torch.float64)


class Policy(torch.nn.Module):
    """Gives the log-probs of the file; the rest is only logged."""

    def forward(self, **_):
        logps = column("logps")
        return types.SimpleNamespace(log_probs=logps, entropy=logps, mean_logits=logps, is_top1=logps > 0)


class Scores(torch.nn.Module):
    def forward(self, **_):
        return types.SimpleNamespace(logits=column("scores")[:, None])


def trainer(kind, **facts):
    """A trainer that was never initialized, with only what its loss reads."""
    made = kind.__new__(kind)
    made.__dict__.update(accelerator=ACCELERATOR, model=torch.nn.Module(), aux_loss_enabled=False,
                         _total_train_tokens=0, _tp_size=1, _metrics={"train": defaultdict(list)}, **facts)
    return made


def dpo(kind):
    mask, (chosen, rejected) = torch.tensor(GIVEN["mask"]), column("ref").chunk(2)
    made = trainer(DPOTrainer, ld_alpha=None, precompute_ref_logps=True, beta=GIVEN["beta"], loss_types=[kind],
                   loss_weights=[1.0], label_smoothing=GIVEN["eps"], f_divergence_type="reverse_kl",
                   use_weighting=False)
    return made._compute_loss(Policy(), {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": chosen, "ref_rejected_logps": rejected}, False)


def reward():
    made = trainer(RewardTrainer, args=types.SimpleNamespace(center_rewards_coefficient=GIVEN["center"]))
    mask = torch.tensor(GIVEN["mask"])
    return made.compute_loss(Scores(), {"input_ids": mask, "attention_mask": mask, "margin": column("margins")})


def orpo():
    """TRL adds its loss of supervised fine-tuning beside this; the paper's, per answer, is added here."""
    chosen, rejected = column("means").chunk(2)
    made = trainer(ORPOTrainer, beta=GIVEN["beta"])
    losses = made.odds_ratio_loss(chosen, rejected)[0]
    return (-chosen - losses).mean()


def kto():
    mask, labels = torch.tensor(GIVEN["mask"]), torch.tensor(GIVEN["labels"]).bool()
    made = trainer(KTOTrainer, precompute_ref_logps=True, calculate_KL=False, beta=GIVEN["beta"], loss_type="kto",
                   desirable_weight=1.5, undesirable_weight=0.5, ref_model=None)
    return made._compute_loss(Policy(), {
        "input_ids": torch.zeros_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "label": labels, "ref_logps": column("ref")}, False)


print("FOUND" + json.dumps({"reward": float(reward()), "orpo": float(orpo()), "kto": float(kto())} | {
    kind: float(dpo(kind)) for kind in ("sigmoid", "robust", "ipo", "hinge")}))
