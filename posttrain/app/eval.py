"""`posttrain eval MODEL… --data …`: models on the same rows, in numbers; the first is the baseline."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from posttrain import __version__
from posttrain.app import benchmarks, code
from posttrain.app.arguments import Command
from posttrain.app.rewards import ask_rewards, reward_of
from posttrain.app.runs import fresh_run
from posttrain.app.screen import make_console, print_json
from posttrain.core.config import BUILTIN, PACK_TOKENS, read_config
from posttrain.core.errors import UserError
from posttrain.core.sequence import Row

OWN_ROWS = 200  # of the baseline's own task in the gate


@dataclass(slots=True)
class RowSet:
    """Rows that all models are measured on: the task's, or a general set of the gate."""

    name: str
    rows: list[Row]
    why: str = ""
    measured: list[Any] = field(default_factory=list)


def main(command: Command) -> int:
    """Measure, print, write: 0, or 1 where the gate closes."""
    options = command.options
    if options["benchmarks"] and not benchmarks.to_sandbox(command):
        benchmarks.check(command)
        with _folder(command) as folder:
            return benchmarks.run(command, folder)
    if options["num_fewshot"] is not None:
        raise UserError("num_fewshot changes nothing without benchmarks", where="command line",
                        fix="name --benchmarks, or drop --num_fewshot")
    if ks := code.check(command):
        with _folder(command) as folder:
            return code.run(command, ks, folder)
    return on_rows(command)


def on_rows(command: Command) -> int:
    """The figures of --data, the gate, the report."""
    from posttrain.app.assistant import how_to_answer

    options, settings = command.options, command.settings
    console = make_console(to_stderr=options["json"])
    how = how_to_answer(command) | {"system": options["system"]}
    rewards = {spec: reward_of(spec, settings) for spec in options["reward"]}  # what is no reward is told at once
    sets = [task_rows(command), *general_sets(command)]
    for found in sets[1:]:
        console.print(f"general: {found.name}, {len(found.rows):,} rows: {found.why}", markup=False, soft_wrap=True)
    _libraries(sets)
    with _folder(command) as folder:
        for name in command.words:
            _measure(name, sets, command, console, how)
        ask_rewards(sets[0], rewards)
        return _conclude(command, sets, how, folder, console)


def _conclude(command: Command, sets: list[RowSet], how: dict[str, Any], folder: Path, console: Console) -> int:
    """Judge, write, print."""
    from posttrain.eval.report_eval import write_evaluation

    options, settings = command.options, command.settings
    task, *general = _judged(sets, settings.seed)
    result = task.result | {"data": settings.data, "how": how, "version": __version__,
                            "general": [{"data": s.name} | v.result for s, v in zip(sets[1:], general, strict=True)],
                            "gate": _gate(options, sets[1:], general)}
    told = write(folder, result, {s.name: v.answers for s, v in zip(sets, [task, *general], strict=True)})
    write_evaluation(folder, result, told)
    tell(console, result, folder)
    if options["json"]:
        print_json(result)
    return 1 if result["gate"] and not result["gate"]["passes"] else 0


def task_rows(command: Command) -> RowSet:
    """The rows of --data."""
    if "data" not in command.given:
        raise UserError("there are no rows to measure on", where="--data",
                        expected="rows in any format that data takes",
                        fix=f"posttrain eval {' '.join(command.words)} --data builtin:held_out")
    specs = command.settings.data
    return RowSet(", ".join(specs), read_rows(specs, command.settings, command.options["limit"]))


def general_sets(command: Command) -> list[RowSet]:
    """The sets of the gate: those named, or embedded text, and what the baseline was trained on if it is a run."""
    options, base = command.options, command.words[0]
    if not options["gate"]:
        idle = [k for k, default in (("general", []), ("max_forgetting", 0.1)) if options[k] != default]
        if idle:
            raise UserError(f"{' and '.join(idle)} changes nothing without the gate", where="command line",
                            fix="add --gate, or drop " + " and ".join(f"--{k}" for k in idle))
        return []
    if len(command.words) < 2:
        raise UserError("the gate compares with a baseline", where="--gate", found=f"one model, {base}",
                        expected="the baseline first, then the models it judges",
                        fix=f"posttrain eval BASE {base} --gate …")
    named = [(spec, "named with --general") for spec in options["general"]] or _battery(base)
    return [RowSet(spec, read_rows([spec], command.settings, own_columns=spec in command.settings.data), why)
            for spec, why in named]


def _battery(base: str) -> list[tuple[str, str]]:
    from posttrain.data.read import parse_spec
    from posttrain.eval.endpoint import is_endpoint
    from posttrain.model.resolve import resolve_model

    if is_endpoint(base):
        raise UserError("the gate needs log-probs of its baseline", where=base, found="an endpoint",
                        fix="name a model folder first")
    ref = resolve_model(base)
    if ref.base == resolve_model(BUILTIN).base:
        made = [("builtin:facts", "the held-out facts as prose, the only text that the embedded base knows")]
    else:
        made = [("builtin:general", "short texts in English, Chinese and code")]
    if ref.run is not None:
        config = read_config(ref.run / "config.yaml")
        own = config.get("eval_data") or config.get("data") or []
        made += [(f"{parse_spec(spec).path}[#{OWN_ROWS}]", "what the baseline was trained for")
                 for spec in own if parse_spec(spec).share is None]
    return made


def read_rows(specs: list[str], settings, limit: int | None = None, own_columns: bool = True) -> list[Row]:
    """Rows of `specs`, in order; a malformed one follows bad_rows."""
    from posttrain.data.read import each_row, open_sources

    sources = open_sources(specs, columns=settings.columns if own_columns else {})
    for source in sources:
        if source.share is not None:
            raise UserError("a share of every update means nothing to an evaluation", where=source.spec,
                            fix=f"name {source.name}, or {source.name}[#500] for its first 500 rows")
    return list(islice((row for row in each_row(sources, settings.bad_rows) if isinstance(row, Row)), limit))


def _libraries(sets: list[RowSet]) -> None:
    """Stop before any model is loaded where the libraries of a figure are missing."""
    from posttrain.eval.overlap import need

    if any(row.kind == "conversation" for s in sets for row in s.rows):
        need("sacrebleu.metrics")
        need("rouge_score.rouge_scorer")


@contextmanager
def _folder(command: Command) -> Iterator[Path]:
    """The folder of the results, once every model is there; where an error or Ctrl-C leaves it empty, it goes."""
    from posttrain.app.assistant import check_models

    output_dir = command.settings.output_dir
    check_models(command.words)
    folder = fresh_run("eval") if output_dir is None else _named(Path(output_dir))
    try:
        yield folder
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()


def _named(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(p.name != "eval.json" for p in folder.iterdir()) and
                            not (folder / "eval.json").is_file()):
        raise UserError("the output folder is in use", where=str(folder), found="files that no evaluation wrote",
                        fix="name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _measure(name: str, sets: list[RowSet], command: Command, console: Console, how: dict[str, Any]) -> None:
    """One model on every set; it is let go of before the next one is loaded."""
    from posttrain.eval.endpoint import Endpoint, is_endpoint
    from posttrain.eval.measure import Measured, asked, measure

    def note(text: str) -> None:
        console.print(text, style="dim", markup=False, soft_wrap=True)

    if is_endpoint(name):
        endpoint = Endpoint(name)
        system, how = how["system"], {k: v for k, v in how.items() if k != "system"}
        opening = [{"role": "system", "content": system}] if system else []
        for found in sets:
            talks = [i for i, row in enumerate(found.rows) if row.kind == "conversation"]
            note(f"{name}: answering {len(talks):,} rows …")
            answers = endpoint.answers([opening + asked(found.rows[i]) for i in talks], **how)
            found.measured.append(Measured(name, endpoint.describe(), None, dict(zip(talks, answers, strict=True))))
        return
    from posttrain.app.assistant import load

    assistant, settings = load(name, command.settings), command.settings
    assistant.renderer.max_length, assistant.renderer.overlong = settings.max_length, "drop"
    for found in sets:
        found.measured.append(measure(assistant, found.rows, note=note,
                                      pack_tokens=max(PACK_TOKENS, settings.max_length), **how))
    gc.collect()


def _judged(sets: list[RowSet], seed: int) -> list[Any]:
    from posttrain.eval.verdict import judge

    return [judge(s.measured, s.rows, seed=seed) for s in sets]


def _gate(options: dict[str, Any], sets: list[RowSet], verdicts: list[Any]) -> dict[str, Any] | None:
    from posttrain.eval.verdict import forgetting

    if not options["gate"]:
        return None
    most = options["max_forgetting"]
    checks = [{"data": s.name} | check for s, v in zip(sets, verdicts, strict=True)
              for check in forgetting(v.result, most)]
    return {"passes": all(c["passes"] for c in checks), "max_forgetting": most, "checks": checks}


def write(folder: Path, result: dict[str, Any], answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """eval.json, and answers.jsonl: one object per row with every model's answer."""
    (folder / "eval.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    told = [{"data": name} | row for name, rows in answers.items() for row in rows]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in told), "utf-8")
    return told


def tell(console: Console, result: dict[str, Any], folder: Path) -> None:
    """The table, what was lost, the gate, and where it all lies."""
    from posttrain.eval.figures import NAMES

    console.print(table(result))
    rows = result["rows"]
    lost = ", ".join(f"{n:,} {reason}" for reason, n in rows["dropped"].items())
    say = [f"rows: {rows['used']:,} of {rows['read']:,} judged" + (f"; dropped: {lost}" if lost else "")]
    if "bleu" in result:
        say.append(f"BLEU with sacrebleu's tokenizer {result['bleu']['tokenizer']}, ROUGE over "
                   f"{result['rouge']['tokenizer']}: chosen from the rows' text")
    say.append(f"[low, high]: 95 %, {result['interval']['how']}; p: {result['difference']['test']}")
    for check in (result["gate"] or {}).get("checks", []):
        say.append(f"gate: {'passes' if check['passes'] else 'CLOSED'}: {check['model']} on {check['data']}: "
                   f"{NAMES[check['figure']]} {check['before']:.4g} → {check['after']:.4g}, "
                   f"a drop of {check['drop']:.1%} (max_forgetting {check['max_forgetting']:.1%})")
    for line in [*say, f"written: {folder / 'eval.json'}, answers.jsonl, report.html"]:
        console.print(line, markup=False, soft_wrap=True)


def table(result: dict[str, Any]) -> Table:
    """One line per figure, one column per model: value [low, high], and below it the difference with its p."""
    from posttrain.eval.figures import shown

    made = Table(show_lines=True)
    made.add_column("figure", overflow="fold")
    for n, model in enumerate(result["models"]):
        made.add_column(Text(model["model"] + (" (baseline)" if n == 0 and len(result["models"]) > 1 else "")))
    for name, label, cells in shown(result["models"]):
        made.add_row(Text(label), *(Text(_cell(name, c) if c else "") for c in cells))
    return made


def _cell(name: str, figure: dict[str, Any]) -> str:
    from posttrain.eval.figures import number

    if figure["value"] is None:
        return f"none: {figure['reason']}" if figure.get("reason") else "none"
    text = f"{number(name, figure['value'])} [{number(name, figure['low'])}, {number(name, figure['high'])}]"
    if gap := figure.get("difference"):
        ends = f"{number(name, gap['low'], True)}, {number(name, gap['high'], True)}"
        text += f"\n{number(name, gap['value'], True)} [{ends}] p={gap['p']:.2g}"
    return text
