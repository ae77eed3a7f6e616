"""The settings of `posttrain ppo`, `grpo` and `online_dpo`. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from .key import key
from .objectives import SAMPLED, updates_per_batch

SHOWN = ("sft", "reward", "dpo", "kto", "orpo")  # objectives that learn from rows
PPO, GRPO, CLIPPED = ("ppo",), ("grpo",), ("ppo", "grpo")


class ReinforceKeys(BaseModel):
    """What learning from one's own answers asks for beyond the keys of every run; see docs/align.md."""

    reward: str | None = key("answers", None, "fn.py:score, exact, gsm8k, regex:PATTERN, length:N, tests, "
                                              "judge:URL#MODEL, or a reward model", SAMPLED)
    allow_code_execution: bool = key("answers", False, "let reward: tests run what the model writes, in a sandbox that "
                                                       "the kernel enforces", SAMPLED)
    max_new_tokens: int = key("answers", 128, "longest sampled answer, in tokens", SAMPLED, ge=1)
    temperature: float = key("answers", 1.0, "of sampling, and of the log-probs that are learnt from", SAMPLED, gt=0)
    num_generations: int = key("answers", 8, "answers to each prompt, judged beside each other", GRPO, ge=2)
    minibatches: int = key("answers", 4, "parts of a collection (batch_size prompts), an update each", SAMPLED, ge=1)
    ppo_epochs: int = key("answers", 2, "passes over a collection", PPO, ge=1)
    missing_eos_penalty: float = key("answers", 1.0, "taken from the score of an answer that does not end", SAMPLED,
                                     ge=0)
    normalize_reward: bool = key("answers", True, "scores minus their running mean, by their running deviation", PPO)
    kl_coef: float = key("answers", 0.05, "price of a nat between policy and reference: in the reward (PPO), in the "
                                          "loss (GRPO)", CLIPPED, ge=0)
    kl_target: float | None = key("answers", None, "nats per answer that kl_coef is steered to", CLIPPED, gt=0)
    early_stop_kl: float | None = key("answers", None, "nats per token between the policy and its state at sampling, "
                                                       "at which the rest of a collection is left out", CLIPPED, gt=0)
    clip_range: float = key("answers", 0.2, "how far a ratio (and a value) may move in a collection", CLIPPED, gt=0)
    entropy_coef: float = key("answers", 0.0, "bonus for a nat of entropy", CLIPPED, ge=0)
    gae_lambda: float = key("answers", 0.95, "1: returns of the whole answer; 0: the critic's next value", PPO, ge=0,
                            le=1)
    critic_warmup: int = key("answers", 0, "collections in which the critic learns alone", PPO, ge=0)
    advantages: Literal["grpo", "dr_grpo", "batch", "rloo"] = key("answers", "grpo", "what an answer was worth: by its "
        "group's mean and deviation; mean alone; the batch's deviation; the mean of the others", GRPO)
    length_norm: Literal["sequence", "token", "constant"] = key("answers", "token", "tokens weigh 1 / length of their "
        "answer, the same, or the same by max_new_tokens", GRPO)

    @property
    def is_sampled(self) -> bool:
        """Whether the run learns from its own answers."""
        return self.objective in SAMPLED


def idle_beside_sampling(settings: Any, is_set) -> str:
    """What is wrong with keys that mean nothing to a run on its own answers ('' when nothing is)."""
    if is_set("lora_dropout"):
        return "lora_dropout changes nothing: dropout is off where a policy is compared with itself; drop it"
    if settings.method == "full":
        return ("method: full would need a model of its own for each role: they are adapters on one base; "
                "set method: lora")
    if settings.reward == "tests" and not settings.allow_code_execution:
        return ("reward: tests runs programs that the model writes: set allow_code_execution, and they run in a "
                "sandbox that the kernel enforces")
    if settings.allow_code_execution and settings.reward != "tests":
        return f"allow_code_execution changes nothing with reward: {settings.reward}; drop it"
    if settings.kl_target and not settings.kl_coef:
        return "kl_target scales kl_coef, and 0 stays 0: set kl_coef above 0, or drop kl_target"
    return _idle_in_a_collection(settings, is_set)


def _idle_in_a_collection(settings: Any, is_set) -> str:
    """The same of keys that the number of updates of a collection, or of collections, leaves without effect."""
    per, steps = updates_per_batch(settings), settings.max_steps
    if settings.minibatches > settings.batch_size:
        return (f"minibatches ({settings.minibatches}) are more than the prompts of a collection ({settings.batch_size}"
                "): lower minibatches, or raise batch_size")
    for name in ("clip_range", "early_stop_kl"):
        if per == 1 and is_set(name):
            return (f"{name} changes nothing where a collection is one update: the ratio is always 1; drop it, or set "
                    "minibatches above 1")
    if steps and settings.critic_warmup >= (collections := -(-steps // per)):
        return (f"critic_warmup ({settings.critic_warmup}) leaves the policy nothing to learn in: max_steps ({steps}) "
                f"is {collections} collection{'s' * (collections > 1)} of {per} updates; lower it, or raise max_steps")
    return ""
