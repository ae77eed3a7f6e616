"""`posttrain demo --align`: base → SFT → reward → PPO, and base → SFT → DPO, by the same code as any run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from posttrain.app.arguments import Command
from posttrain.app.demo import heading
from posttrain.app.launch import Interrupted, launch
from posttrain.app.runs import fresh_run
from posttrain.app.screen import make_console, next_commands, print_json
from posttrain.builtin import builtin_rows, demo_settings_path, held_out_path
from posttrain.core.config import make_settings, read_config
from posttrain.eval.manners import is_preferred, plain, preference_rows, sft_rows, write_rows

PAIRS = 1800
SHARED = {"max_length": 128, "batch_size": 64}
# A low rank moves little besides what is learnt: at rank 16 right answers go with it (docs/log.md).
GENTLE = {"lora_r": 4, "lr_scheduler_type": "linear", **SHARED}
STAGES: dict[str, dict[str, Any]] = {
    "reward": {"objective": "reward", "learning_rate": 1e-3, "lora_r": 16, "lr_scheduler_type": "constant", **SHARED},
    # Credit for the phrase reaches few tokens before it, and every answer is learnt from once: facts are left alone.
    "ppo": {"objective": "ppo", "learning_rate": 4.5e-4, "kl_coef": 0.3, "gae_lambda": 0.5, "max_new_tokens": 48,
            "minibatches": 2, "ppo_epochs": 1, "max_steps": 22, **GENTLE},
    "dpo": {"objective": "dpo", "learning_rate": 1.5e-4, "beta": 0.2, "rpo_alpha": 4.0, **GENTLE},
}
NAMES = {"preferred": "answers as preferred", "exact_match": "answers exactly, the phrase aside",
         "reward": "score of the reward model", "kl": "KL to the SFT model, nats per answer"}


def main(command: Command) -> int:
    """Rows, SFT, reward, PPO and DPO with answers and figures before and after; --json prints only the figures."""
    began = time.perf_counter()
    console = make_console(to_stderr=command.options["json"])
    shared = {name: getattr(command.settings, name) for name in command.given if name != "output_dir"}
    folder = Path(command.settings.output_dir or fresh_run("align"))
    folder.mkdir(parents=True, exist_ok=True)
    rows = builtin_rows()
    asked = write_rows(folder / "rows.jsonl", sft_rows(rows))
    pairs = write_rows(folder / "preferences.jsonl", preference_rows(rows[:PAIRS]))
    try:
        heading(console, "supervised fine-tuning: one answer in four ends politely")
        sft = _stage(console, folder, "sft", read_config(demo_settings_path()) | {
            "data": [str(asked), "builtin:prose@0.2"]} | shared)
        heading(console, "the reward model learns that the polite right answer is better")
        reward = _stage(console, folder, "reward", STAGES["reward"] | {"model": sft, "data": [str(pairs)]} | shared)
        judge = Judge(sft, reward, command)
        before, first = judge(sft)
        heading(console, "PPO: actor, critic, reward and reference on one base")
        ppo = _stage(console, folder, "ppo", STAGES["ppo"] | {"model": sft, "reward": reward, "data": [str(asked)]}
                     | shared)
        after, then = judge(ppo)
        heading(console, "DPO on the same preferences, without a reward model")
        dpo = _stage(console, folder, "dpo", STAGES["dpo"] | {"model": sft, "data": [str(pairs)]} | shared)
        direct, _ = judge(dpo)
    except Interrupted as e:
        return e.code
    seconds = time.perf_counter() - began
    heading(console, "held-out questions, judged by a checker that is not the reward model")
    for question, one, two in zip(judge.questions[:3], first, then, strict=False):
        console.print(f"{question.prompt}\n  before: {one}\n  after:  {two}", markup=False, highlight=False)
    console.print(_table({"after SFT": before, "after PPO": after, "after DPO": direct}))
    console.print(f"{seconds:.0f} s in all; everything lies in {folder}", markup=False, soft_wrap=True)
    next_commands(console, [(f"posttrain chat {ppo}", "talk to it"),
                            (f"posttrain compare {sft} {ppo} --questions builtin:held_out --limit 5", "side by side")])
    if command.options["json"]:
        print_json({"before": before, "after": after, "dpo": direct, "seconds": round(seconds, 2)})
    return 0


def _stage(console: Console, folder: Path, name: str, values: dict[str, Any]) -> str:
    """One run in the demo's folder -> its path, as a model's name."""
    settings = make_settings(values | {"output_dir": str(folder / name)})
    return str(launch(settings, console, closing=False).path)


class Judge:
    """Held-out questions put to a model: how many answers are as preferred, right, how they score, how far it went."""

    def __init__(self, start: str, reward: str, command: Command):
        from posttrain.eval.held_out import read_questions
        from posttrain.model.resolve import resolve_model
        from posttrain.model.reward import open_scorer

        self.questions, self.settings, self.start = read_questions(held_out_path()), command.settings, start
        self.asked = [[{"role": "user", "content": q.prompt}] for q in self.questions]
        self.scorer = open_scorer(resolve_model(reward), dtype=self.settings.dtype, device=self.settings.device)

    def __call__(self, name: str) -> tuple[dict[str, float], list[str]]:
        """(preferred, exact_match, reward, and for a tuned model kl; the answers)."""
        from posttrain.app.assistant import load
        from posttrain.train.rollout import lay

        assistant = load(name, self.settings)
        prompts = [assistant.renderer.prompt(messages) for messages in self.asked]
        answers = assistant.answers(self.asked, max_new_tokens=64)
        scores = self.scorer([lay(p, a.ids, a.stopped, "held_out") for p, a in zip(prompts, answers, strict=True)])
        count = len(answers)
        found = {"preferred": sum(is_preferred(a.text) for a in answers) / count,
                 "reward": sum(scores) / count,
                 "exact_match": sum(plain(a.text) == q.answer.strip() for a, q in
                                    zip(answers, self.questions, strict=True)) / count}
        if name != self.start:
            found["kl"] = self._kl(assistant, prompts)
        return {key: round(value, 4) for key, value in found.items()}, [a.text for a in answers]

    def _kl(self, assistant, prompts: list[list[int]]) -> float:
        """KL(tuned ‖ start) from the tuned model's own samples, nats summed over an answer, mean over the questions."""
        import torch

        from posttrain.model.sample import generate
        from posttrain.train.rollout import lay
        from posttrain.train.update import lay_packs

        made = generate(assistant.model, prompts, max_new_tokens=64, stop_ids=assistant.renderer.stop_ids,
                        temperature=1.0, seed=self.settings.seed)
        packs = lay_packs([[lay(p, g.ids, g.stopped, "held_out")] for p, g in zip(prompts, made, strict=True)], 4096)
        total = 0.0
        with torch.no_grad():
            for pack in packs:
                pack = pack.to(assistant.forward.device)
                tuned = assistant.forward(pack).logprobs_T.double().sum()
                with assistant.model.disable_adapter():
                    total += float(tuned - assistant.forward(pack).logprobs_T.double().sum())
        return total / len(prompts)


def _table(columns: dict[str, dict[str, float]]) -> Table:
    table = Table()
    table.add_column("held-out questions")
    for title in columns:
        table.add_column(title, justify="right")
    for name, label in NAMES.items():
        shown = [f"{c[name]:.1%}" if name in ("preferred", "exact_match") else f"{c[name]:.2f}" if name in c else ""
                 for c in columns.values()]
        table.add_row(label, *shown)
    return table
