"""`posttrain eval MODEL… --benchmarks …`: models on the harness's tasks, the first as baseline."""

from __future__ import annotations

import gc
import json
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain import __version__
from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import UserError


def run(command, folder) -> int:
    """Run every benchmark on every model; results in `folder`, the harness's own beside ours."""
    from posttrain.eval.benchmarks import figures, find_tasks, run_benchmarks

    options, settings = command.options, command.settings
    console = make_console(to_stderr=options["json"])
    names, manager = find_tasks(_asked(options))
    models = []
    for number, name in enumerate(command.words):
        assistant, chat, why = _open(name, settings)
        console.print(f"{name}: {', '.join(names)}; {why}", style="dim", markup=False, soft_wrap=True)
        raw = run_benchmarks(assistant, names, manager, limit=options["limit"], num_fewshot=options["num_fewshot"],
                             chat=chat, seed=settings.seed)
        (folder / f"harness-{number}.json").write_text(
            json.dumps(raw, ensure_ascii=False, indent=1, default=str) + "\n", "utf-8")
        models.append({"model": name, "chat_template": chat, "benchmarks": figures(raw)})
        del assistant
        gc.collect()
    result = {"models": models, "harness": _harness(), "limit": options["limit"], "version": __version__}
    (folder / "eval.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    console.print(table(models))
    console.print(f"written: {folder / 'eval.json'}, harness-*.json", markup=False, soft_wrap=True)
    if options["json"]:
        print_json(result)
    return 0


def _asked(options: dict[str, Any]) -> list[str]:
    return [name.strip() for given in options["benchmarks"] for name in given.split(",") if name.strip()]


def to_sandbox(command) -> bool:
    """Whether the one benchmark named is scored in the sandbox: then it is `--code` with the benchmark's own rows."""
    from posttrain.eval.benchmarks import SANDBOXED

    options, asked = command.options, _asked(command.options)
    if len(asked) != 1 or asked[0] not in SANDBOXED:
        return False
    if options["code"] or options["num_fewshot"] is not None:
        raise UserError(f"{asked[0]} brings its own problems, and asks them without examples", where="command line",
                        found="--code" if options["code"] else "--num_fewshot", fix="drop it")
    options["code"] = SANDBOXED[asked[0]]
    return True


def check(command) -> None:
    """What does not go with benchmarks is an error, not ignored."""
    options = command.options
    idle = [k for k in ("gate", "system", "reward", "code", "allow_code_execution") if options.get(k)]
    idle += [k for k, default in (("samples", 1), ("k", "1")) if options[k] != default]
    idle += [k for k in ("data", "columns") if k in command.given]
    idle += [k for k, default in (("max_new_tokens", 256), ("temperature", 0.0), ("top_p", 1.0))
             if options[k] != default]
    if idle:
        raise UserError(f"{', '.join(idle)}: the harness's tasks bring their own rows and settings",
                        where="command line", fix="drop " + ", ".join(f"--{k}" for k in idle))


def _open(name: str, settings) -> tuple[Any, bool, str]:
    """The assistant, whether its questions are wrapped in its chat template, and why."""
    from posttrain.app.assistant import load
    from posttrain.eval.endpoint import is_endpoint
    from posttrain.model.resolve import resolve_model

    if is_endpoint(name):
        raise UserError("benchmarks need log-probs of the prompt, which an endpoint does not give", where=name,
                        fix="name a model folder, a run or a hub id")
    assistant = load(name, settings)
    if resolve_model(name).run is not None:
        return assistant, True, "with the chat template it was trained with"
    if assistant.renderer.spec.template_name == "plain" and settings.chat_template == "auto":
        return assistant, False, "without a chat template: the tokenizer has none"
    return assistant, True, f"with the chat template {assistant.renderer.spec.template_name}"


def _harness() -> str:
    from importlib.metadata import version

    return f"lm-eval {version('lm-eval')}"


def table(models: list[dict[str, Any]]) -> Table:
    """One line per task and metric, one column per model: value ± standard error."""
    made = Table()
    made.add_column("benchmark")
    for model in models:
        made.add_column(Text(model["model"]))
    for task, first in models[0]["benchmarks"].items():
        for metric, value in first.items():
            stem, _, filtered = metric.partition(",")
            if not filtered or stem.endswith("_stderr") or not isinstance(value, int | float):
                continue
            label = f"{task} {stem}" + (f" ({filtered})" if filtered != "none" else "") + f", n = {first['n']}"
            made.add_row(label, *(_cell(m["benchmarks"].get(task, {}), stem, filtered) for m in models))
    return made


def _cell(scores: dict[str, Any], stem: str, filtered: str) -> str:
    value, error = scores.get(f"{stem},{filtered}"), scores.get(f"{stem}_stderr,{filtered}")
    sure = f" ± {error:.4f}" if isinstance(error, int | float) else ""
    return f"{value:.4f}{sure}" if isinstance(value, int | float) else str(value)
