"""The verbs that train: settings in, a run folder out. Each is the same command with another objective."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from posttrain.app.arguments import Command
from posttrain.app.launch import Interrupted, launch
from posttrain.app.resume import check_objective, resumed_values
from posttrain.app.run import Run
from posttrain.app.screen import make_console, print_json
from posttrain.core.config import make_settings


def main(command: Command) -> int:
    """Train; exit 0 when finished, 130 or 143 after a signal with its checkpoint written."""
    console = make_console(to_stderr=command.options["json"])
    try:
        run = launch(command.settings, console)
    except Interrupted as e:
        return e.code
    if command.options["json"]:
        print_json({"run": str(run.path), "model": str(run.model_path), "status": run.status, "ledger": run.ledger,
                    "metrics": run.metrics[-1:]})
    return 0


def sft(*, console: Console | None = None, **values: Any) -> Run:
    """Supervised fine-tuning from Python: the keys of `posttrain sft --help` -> the finished Run.

    With `resume` and `output_dir` the other keys come from the run. Raises UserError (SettingsError for wrong keys).
    Logs go to `console`, by default standard error.
    """
    return _train("sft", console, values)


def reward(*, console: Console | None = None, **values: Any) -> Run:
    """A reward model from Python: the keys of `posttrain reward --help` -> the finished Run; else as `sft`."""
    return _train("reward", console, values)


def dpo(*, console: Console | None = None, **values: Any) -> Run:
    """Direct preference optimization from Python: the keys of `posttrain dpo --help` -> the finished Run; as `sft`."""
    return _train("dpo", console, values)


def orpo(*, console: Console | None = None, **values: Any) -> Run:
    """Odds ratio preference optimization from Python: the keys of `posttrain orpo --help` -> the finished Run."""
    return _train("orpo", console, values)


def kto(*, console: Console | None = None, **values: Any) -> Run:
    """Kahneman–Tversky optimization from Python: the keys of `posttrain kto --help` -> the finished Run."""
    return _train("kto", console, values)


def ppo(*, console: Console | None = None, **values: Any) -> Run:
    """Proximal policy optimization from Python: the keys of `posttrain ppo --help` -> the finished Run."""
    return _train("ppo", console, values)


def grpo(*, console: Console | None = None, **values: Any) -> Run:
    """Group-relative policy optimization from Python: the keys of `posttrain grpo --help` -> the finished Run."""
    return _train("grpo", console, values)


def online_dpo(*, console: Console | None = None, **values: Any) -> Run:
    """Online direct preference optimization from Python: the keys of `posttrain online_dpo --help` -> the Run."""
    return _train("online_dpo", console, values)


def _train(objective: str, console: Console | None, values: dict[str, Any]) -> Run:
    if values.get("resume"):
        values = resumed_values(values)
    if wrong := check_objective(objective, values, "settings"):
        raise wrong
    return launch(make_settings({**values, "objective": objective}), console or make_console(to_stderr=True))
