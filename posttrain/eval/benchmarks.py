"""Benchmarks by lm-evaluation-harness on a loaded model: its tasks, its names, its versions, its figures."""

from __future__ import annotations

import difflib
import logging
import tempfile
from pathlib import Path
from typing import Any

import yaml

from ..core.errors import UserError
from ..core.extras import need_extra

# Tasks whose scoring runs what the model wrote, and the rows that the harness takes for them.
SANDBOXED = {"humaneval": "openai/openai_humaneval:test", "mbpp": "google-research-datasets/mbpp:full:test"}


def find_tasks(names: list[str]) -> tuple[list[str], Any]:
    """Task names, and the harness's own manager for them: a name it ships, or the YAML file of a task.

    UserError where the harness is missing, a name is unknown, or scoring would run the model's programs unguarded.
    """
    need_extra("lm_eval", "eval", where="benchmarks", found=", ".join(names))
    from lm_eval.tasks import TaskManager

    files = [Path(n) for n in names if n.endswith((".yaml", ".yml"))]
    named = {str(f): _name_in(f) for f in files}
    manager = TaskManager(include_path=sorted({str(f.resolve().parent) for f in files}) or None)
    chosen = [named.get(n, n) for n in names]
    for name in chosen:
        if name.split("_")[0] in SANDBOXED:
            raise UserError("this benchmark runs the programs that the model writes", where="benchmarks", found=name,
                            fix="score programs in the sandbox, by themselves: posttrain eval MODEL --benchmarks "
                                f"{name} --allow_code_execution" if name in SANDBOXED else
                                "score programs in the sandbox: posttrain eval MODEL --code FILE "
                                "--allow_code_execution")
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            raise UserError("the harness has no such benchmark", where="benchmarks", found=name,
                            expected=f"one of its {len(manager.all_tasks):,} names, or the YAML file of a task",
                            fix=f"did you mean {', '.join(near)}?" if near else "see `lm-eval ls tasks`")
    return chosen, manager


def _name_in(path: Path) -> str:
    """The `task` that a YAML file defines; the harness's own tags (`!function`) are left alone."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as e:
        raise UserError("the task file cannot be read", where=str(path), found=e.strerror or str(e),
                        fix="name an existing YAML file") from None
    found = next((line.partition(":")[2] for line in lines if line.startswith("task:")), "")
    name = yaml.safe_load(found) if found.strip() else None
    if not isinstance(name, str):
        raise UserError("the file defines no task", where=str(path), expected="a line `task: NAME`",
                        fix="write a task as the harness documents it, or name one that it ships")
    return name


def run_benchmarks(assistant, names: list[str], manager, *, limit: int | None, num_fewshot: int | None,
                   chat: bool, seed: int) -> dict[str, Any]:
    """Run tasks on an Assistant's model -> the harness's own result, without the samples' texts.

    `chat` wraps each question in the chat template. The figures are those of its `hf` model on the same folder and type
    (test_benchmarks.py::test_the_figures_are_the_harness_own).
    """
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        assistant.renderer.spec.save(Path(folder))
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = HFLM(pretrained=assistant.model, tokenizer=tokenizer, batch_size=8)
        try:
            return lm_eval.simple_evaluate(
                model=model, tasks=names, task_manager=manager, limit=limit, num_fewshot=num_fewshot,
                apply_chat_template=chat, log_samples=False, bootstrap_iters=1000, random_seed=seed,
                numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed)
        except (ConnectionError, FileNotFoundError) as e:
            raise UserError("the data of a benchmark cannot be had", where=", ".join(names),
                            found=str(e).split("\n")[0][:200],
                            fix="let this machine reach the hub once (it is kept), or name a task file whose "
                                "dataset_path: json points to files here") from None


def figures(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The harness's result as {task: {metric: value, "version", "n", "shots"}}, under its own names."""
    found = {}
    for task, scores in result["results"].items():
        entry = {name: value for name, value in scores.items() if name not in ("alias", "name", "sample_len",
                                                                               "sample_count")}
        found[task] = entry | {"version": result["versions"].get(task), "shots": result["n-shot"].get(task),
                               "n": (result.get("n-samples") or {}).get(task, {}).get("effective")}
    return found
