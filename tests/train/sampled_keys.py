"""The keys of PPO and GRPO, each varied: what test_every_key.py runs for them."""

from __future__ import annotations

PPO = {"verb": "ppo", "method": "lora", "max_length": 32, "max_new_tokens": 6, "max_steps": 8, "minibatches": 2,
       "learning_rate": 1e-3}
GRPO = {**PPO, "verb": "grpo", "num_generations": 3, "max_steps": 4}


def base(bench, start: dict) -> dict:
    """The run that others are compared with; its reward counts letters, so that answers differ in what they get."""
    path = bench.folder / "letters.py"
    path.write_text("def score(prompts, answers, rows):\n    return [a.count('e') - 0.1 * len(a) for a in answers]\n"
                    "def long(prompts, answers, rows):\n    return [len(a) for a in answers]\n")
    return {**start, "reward": f"{path}:score"}


def differs(start: dict, beside: dict | None = None, **values):
    """A case: these values over a PPO or GRPO run (with `beside`) give another adapter."""
    def case(bench):
        one = base(bench, start) | (beside or {})
        assert bench.differ(one, one | values)
    return case


def reward(bench):
    one = base(bench, PPO)
    assert bench.differ(one, one | {"reward": one["reward"].replace(":score", ":long")})


def allow_code_execution(bench, monkeypatch):
    """Without it no program is run; with it the verdicts of the sandbox are the scores, and nothing else takes it."""
    from posttrain.eval import graders, sandbox

    monkeypatch.setattr(sandbox, "check", lambda: None)
    monkeypatch.setattr(graders.UnitTests.__init__, "__defaults__", (
        lambda trials: [sandbox.Verdict(len(t.program) % 2 == 0) for t in trials],))
    rows = [{"prompt": f"def f{i}(x):\n", "test": "def check(f):\n    pass", "entry_point": f"f{i}"} for i in range(24)]
    one = base(bench, GRPO) | {"data": bench.path("problems.jsonl", rows), "reward": "tests"}
    assert "reward: tests runs programs that the model writes: set allow_code_execution" in bench.fails(**one)
    assert {m["reward"] for m in bench.run(**one, allow_code_execution=True).metrics} - {0.0, 1.0}
    assert "allow_code_execution changes nothing with reward: exact; drop it" in bench.fails(
        **{**one, "reward": "exact", "allow_code_execution": True})


CASES = {
    "allow_code_execution": allow_code_execution,
    "reward": reward,
    "max_new_tokens": differs(PPO, max_new_tokens=4),
    "temperature": differs(PPO, temperature=0.5),
    "num_generations": differs(GRPO, num_generations=2),
    "minibatches": differs(PPO, minibatches=4),
    "ppo_epochs": differs(PPO, ppo_epochs=4, max_steps=16),
    "missing_eos_penalty": differs(PPO, missing_eos_penalty=9.0),
    "normalize_reward": differs(PPO, normalize_reward=False),
    "kl_coef": differs(PPO, kl_coef=5.0),
    "kl_target": differs(PPO, kl_target=0.001),
    "early_stop_kl": differs(PPO, early_stop_kl=1e-9),
    "clip_range": differs(PPO, clip_range=1e-4),
    "entropy_coef": differs(PPO, entropy_coef=1.0),
    "gae_lambda": differs(PPO, gae_lambda=0.0),
    "critic_warmup": differs(PPO, critic_warmup=1),
    "advantages": differs(GRPO, advantages="rloo"),
    "length_norm": differs(GRPO, length_norm="sequence"),
}
