"""The objectives by name: what a verb learns."""

from __future__ import annotations

from ...core.config import Settings
from ..objective import Objective
from .dpo import DPO
from .grpo import GRPO
from .kto import KTO
from .online_dpo import OnlineDPO
from .orpo import ORPO
from .ppo import PPO
from .reward import Reward
from .sft import SFT

OBJECTIVES: dict[str, type[Objective]] = {
    "sft": SFT, "reward": Reward, "dpo": DPO, "orpo": ORPO, "kto": KTO, "ppo": PPO, "grpo": GRPO,
    "online_dpo": OnlineDPO}


def make_objective(settings: Settings) -> Objective:
    """The objective that a run's settings name, with the keys it uses."""
    return OBJECTIVES[settings.objective].of(settings)
