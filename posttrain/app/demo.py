"""`posttrain demo`: the whole road on the embedded pair, by the same code as any run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain.app.arguments import Command
from posttrain.app.eval import write
from posttrain.app.runs import fresh_run
from posttrain.app.screen import make_console, next_commands, print_json
from posttrain.builtin import demo_settings_path, held_out_path
from posttrain.core.config import PACK_TOKENS, Settings, make_settings, read_config
from posttrain.core.sequence import Row

QUESTIONS = ("Give me a 1-sentence introduction of LLM.", "Calculate 1+1-1",
             "What's the difference between thread and process?")
ROOM = 80  # tokens of an answer to these: the base goes on for as long as it is let
NAMES = {"exact_match": "answers exactly", "completes": "completes the fact as prose", "stops": "stops by itself",
         "answer_loss": "answer loss (nats per token)", "perplexity": "answer perplexity"}


def main(command: Command) -> int:
    """Base, rows, mask, training, answers, held-out table, next commands; with --json only the numbers on stdout."""
    if command.options["align"]:
        from posttrain.app.align import main as align

        return align(command)
    from posttrain.app.assistant import load
    from posttrain.app.data import mask_of_first_row
    from posttrain.app.folder import check_free
    from posttrain.app.launch import Interrupted, launch
    from posttrain.app.table import as_table, first_rows

    began = time.perf_counter()
    console = make_console(to_stderr=command.options["json"])
    settings = demo_settings(command)
    check_free(settings)  # one in use is refused before anything is computed

    heading(console, "the base model only continues text")
    base = load("builtin", settings)
    first = base.answers(_asked(), max_new_tokens=ROOM)
    _dialogue(console, first)

    heading(console, "the rows it will learn to answer from")
    console.print(as_table(first_rows(settings, 4)))

    heading(console, "one row as the trainer sees it: only the coloured tokens are trained")
    console.print(mask_of_first_row(settings))

    heading(console, "held-out questions, before")
    before, said_before = _score(base)
    console.print(_line(before), markup=False)
    del base

    heading(console, "training")
    try:
        run = launch(settings, console, closing=False)
    except Interrupted as e:
        return e.code

    heading(console, "the same questions, after")
    tuned = load(run.path, settings)
    _dialogue(console, tuned.answers(_asked(), max_new_tokens=ROOM))

    heading(console, "held-out questions: none of these facts is in the rows")
    after, said_after = _score(tuned)
    console.print(_table(before, after))
    _report(run.path, [said_before, said_after])
    seconds = time.perf_counter() - began
    console.print(f"{seconds:.0f} s in all. The model lies in {run.model_path}; everything about the run in "
                  f"{run.path / 'report.html'}.", markup=False, soft_wrap=True)
    next_commands(console, [
        (f"posttrain chat {run.path}", "talk to it"),
        (f"posttrain compare builtin {run.path} --questions builtin:held_out --limit 5", "side by side"),
        ("posttrain data show builtin --html mask.html", "every token of the rows"),
        ("posttrain sft --model MODEL --data ROWS.json", "the same on your own")])
    if command.options["json"]:
        print_json({"seconds": round(seconds, 2), "run": str(run.path), "held_out": str(held_out_path()),
                    "before": before.to_json(), "after": after.to_json()})
    return 0


def demo_settings(command: Command) -> Settings:
    """The demo's settings file, under what the command line gives, with a fresh run folder."""
    values: dict[str, Any] = read_config(demo_settings_path())
    values.update({name: getattr(command.settings, name) for name in command.given})
    values["output_dir"] = values.get("output_dir") or str(fresh_run("demo"))
    return make_settings(values)


def heading(console: Console, text: str) -> None:
    """A line that begins a part."""
    console.print()
    console.rule(Text(text, style="bold"), align="left")
    console.print()


def _asked() -> list[list[dict[str, Any]]]:
    return [[{"role": "user", "content": q}] for q in QUESTIONS]


def _dialogue(console: Console, answers: list) -> None:
    for question, answer in zip(QUESTIONS, answers, strict=True):
        console.print(Text("you   ", style="bold cyan") + Text(question, style="default not bold"))
        said = " ".join(answer.text.split())
        cell = Text("model ", style="bold green") + Text(said, style="default not bold")
        if not answer.stopped:
            cell.append(" … [never stops]", style="red not bold")
        console.print(cell)


def _score(assistant):
    """The score on the held-out questions, and the same answers as an evaluation takes them."""
    from posttrain.eval.held_out import read_questions, score
    from posttrain.eval.measure import Measured, row_losses

    found, answers = score(assistant.model, assistant.forward, assistant.renderer, read_questions(held_out_path()),
                           completions=True)
    losses, dropped = row_losses(assistant.forward, assistant.renderer, _held_rows(), PACK_TOKENS)
    return found, Measured(str(assistant.name), assistant.describe(), losses, dict(enumerate(answers)), dropped)


def _held_rows() -> list[Row]:
    from posttrain.eval.held_out import read_questions

    return [Row("conversation", f"builtin:held_out:{i}", messages=[{"role": "user", "content": q.prompt},
                                                                   {"role": "assistant", "content": q.answer}])
            for i, q in enumerate(read_questions(held_out_path()), 1)]


def _report(folder: Path, measured: list) -> None:
    """The held-out questions before and after, with intervals, into the run's report."""
    from posttrain.eval.report import write_report
    from posttrain.eval.verdict import judge

    verdict = judge(measured, _held_rows(), with_overlap=False)
    write(folder, verdict.result | {"data": ["builtin:held_out"], "general": [], "gate": None},
          {"builtin:held_out": verdict.answers})
    write_report(folder)


def _line(found) -> str:
    return ", ".join(f"{NAMES[name]} {_number(name, value)}" for name, value in found.to_json().items())


def _number(name: str, value: float) -> str:
    return f"{value:.3f}" if name == "answer_loss" else f"{value:.2f}" if name == "perplexity" else f"{value:.1%}"


def _table(before, after) -> Table:
    table = Table()
    table.add_column("held-out questions")
    table.add_column("before", justify="right")
    table.add_column("after", justify="right", style="bold")
    one, two = before.to_json(), after.to_json()
    for name, label in NAMES.items():
        if name in one or name in two:
            table.add_row(label, *(_number(name, v[name]) if name in v else "" for v in (one, two)))
    return table
