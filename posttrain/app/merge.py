"""`posttrain merge RUN`: one plain Hugging Face folder out of a base and its adapter, checked in a fresh process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from posttrain import __version__
from posttrain.app.arguments import Command
from posttrain.app.assistant import date_of
from posttrain.app.screen import make_console, next_commands, print_json
from posttrain.app.stopping import handling, stop_now
from posttrain.core.config import Settings, read_config
from posttrain.core.errors import UserError

QUESTIONS = 20


def main(command: Command) -> int:
    """Merge, check, tell; with --json only the figures on standard output."""
    console = make_console(to_stderr=command.options["json"])

    def note(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    with handling(stop_now):
        folder, found = merge(command.words[0], command.options["output"], command.settings, note)
    if command.options["json"]:
        print_json({"model": str(folder), "checks": found})
    else:
        next_commands(console, [(f"posttrain chat {quote(str(folder))}", "talk to it"),
                                (f"posttrain sft --model {quote(str(folder))} --data ROWS.json", "train it further")])
    return 0


def merge(name: str, output: str | None = None, settings: Settings | None = None,
          note: Callable[[str], None] = lambda text: None, questions: int = QUESTIONS) -> tuple[Path, dict[str, Any]]:
    """The merged folder of a run, a checkpoint or an adapter, and what the check found, by type.

    The folder has its name only once a fresh process has loaded it and found the model that was trained: greedy text
    the same, logits within the bound (`reload.BOUND`), in float32 on both sides. What the shipped type then loses is
    measured too and told.
    """
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.identity import read_base
    from posttrain.model.resolve import resolve_model

    settings = settings or Settings()
    ref = resolve_model(name)
    _need_adapter(ref)
    if ref.adapter and read_base(ref) is None:
        note(f"the base is not checked: {ref.adapter} has no base.json, which posttrain writes beside its adapters")
    folder = Path(output) if output else _beside(ref)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError("the output folder is in use", where=str(folder), fix="name another with --output")
    spec = load_tokenizer(ref.tokenizer, chat_template=settings.chat_template, template_date=settings.template_date,
                          trust_remote_code=settings.trust_remote_code)
    from posttrain.model.checkpoint import writing

    partial, exact = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "exact"))
    with writing(folder, partial):
        for path in (partial, exact):
            shutil.rmtree(path, ignore_errors=True)
        try:
            kind = _write(ref, partial, exact, spec, settings, note)
            found = _check(ref, partial, exact, kind, settings, questions)
            _judge(found["float32"])
        finally:
            shutil.rmtree(exact, ignore_errors=True)
        (partial / "README.md").write_text(_card(ref, found), "utf-8")
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    for dtype, likeness in found.items():
        note(_line(dtype, likeness))
    note(f"model: {folder}")
    return folder, found


def _need_adapter(ref) -> None:
    """Stop where there is nothing to merge: whole weights are a plain folder already."""
    if ref.adapter is None and not (ref.checkpoint and read_config(ref.run / "config.yaml")["method"] != "full"):
        whole = Path(ref.base) if ref.checkpoint is None else None
        raise UserError("there is nothing to merge: these are whole weights, without an adapter", where=ref.name,
                        fix=f"use {whole} as it is" if whole else "finish the run: its model folder will be whole")


def _beside(ref) -> Path:
    return ref.run / "merged" if ref.run else ref.adapter.with_name(f"{ref.adapter.name}-merged")


def _write(ref, partial: Path, exact: Path, spec, settings: Settings, note: Callable[[str], None]) -> str:
    """Both folders: float32 for the check, and the base's own type to be shipped -> that type's name."""
    import torch

    if settings.threads:
        torch.set_num_threads(settings.threads)
    from posttrain.model.adapters import count_parameters
    from posttrain.model.merge import merged_policy, write_merged

    policy = merged_policy(ref, device=settings.device, trust_remote_code=settings.trust_remote_code)
    kind = str(policy.stored).removeprefix("torch.")
    note(f"merged {ref.adapter or ref.checkpoint} into {ref.base}: {count_parameters(policy.model)[1]:,} weights, "
         f"shipped in {kind}, the type of the base")
    if policy.stored != torch.float32:
        write_merged(exact, policy, spec, torch.float32)
    write_merged(partial, policy, spec, policy.stored)
    return kind


def _check(ref, partial: Path, exact: Path, kind: str, settings: Settings, questions: int) -> dict[str, Any]:
    trained = str(ref.checkpoint or (ref.run if ref.run and ref.adapter else ref.adapter))
    asked = {"trained": trained, "exact": str(exact if exact.exists() else partial),
             "shipped": str(partial) if exact.exists() else None, "questions": questions, "shipped_dtype": kind,
             "template_date": date_of(ref, settings), "device": settings.device, "threads": settings.threads,
             "trust_remote_code": settings.trust_remote_code}
    return _fresh(asked, partial)


def _fresh(asked: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What `reload.check` finds in a process of its own; one that fails is an error with its last words."""
    done = subprocess.run([sys.executable, "-m", "posttrain.app.reload", json.dumps(asked)], capture_output=True,
                          text=True, check=False)
    if done.returncode:
        raise UserError("the merged folder could not be loaded again", where=str(folder),
                        found=(done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
                        fix="serve the adapter on its base: `posttrain chat` takes it as it is")
    return json.loads(done.stdout.splitlines()[-1])


def _judge(likeness: dict[str, Any]) -> None:
    if not likeness["holds"]:
        raise UserError("the merged weights are not the model that was trained", where="the check in a fresh process",
                        found=f"largest |Δlogit| {likeness['largest']:.1e}, {likeness['same']} of "
                              f"{likeness['prompts']} answers the same",
                        expected=f"at most {likeness['bound']:.1e}, and every answer the same",
                        fix="serve the adapter on its base: `posttrain chat` takes it as it is")


def _line(dtype: str, likeness: dict[str, Any]) -> str:
    ties = f", {likeness['ties']} more part at a tie" if likeness["ties"] else ""
    bound = f" (at most {likeness['bound']:.1e})" if "bound" in likeness else ""
    return (f"{dtype}, beside base and adapter in float32: largest |Δlogit| {likeness['largest']:.1e}{bound} of logits "
            f"up to {likeness['scale']:.1f}; {likeness['same']} of {likeness['prompts']} greedy answers the same{ties}")


def _card(ref, found: dict[str, Any]) -> str:
    base = f"`{ref.base}`" if ref.is_hub else f"`{Path(ref.base).name}`"
    head = ["---", "library_name: transformers", "tags: [posttrain, merged]"]
    head += [f"base_model: {ref.base}"] if ref.is_hub else []
    return "\n".join([*head, "---", "", f"An adapter merged into {base} with posttrain {__version__}.", "",
                      "Checked in a fresh process before this folder took its name:", "",
                      *(f"- {_line(dtype, likeness)}" for dtype, likeness in found.items()), ""])
