"""`posttrain eval MODEL… --code FILE --allow_code_execution`: pass@k, every program run in the sandbox."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain import __version__
from posttrain.app.assistant import how_to_answer
from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import UserError


def check(command) -> list[int]:
    """The k of --k; a UserError for what does not go together, before anything is loaded."""
    options = command.options
    idle = [k for k in ("samples", "k", "allow_code_execution") if options[k] != {"samples": 1, "k": "1"}.get(k, False)]
    if not options["code"]:
        if idle:
            raise UserError(f"{' and '.join(idle)} changes nothing without code", where="command line",
                            fix="name a file of problems with --code, or drop " + " and ".join(f"--{k}" for k in idle))
        return []
    beside = [f"--{k}" for k in ("data", "columns") if k in command.given]
    if beside := beside + [f"--{k}" for k in ("gate", "general", "reward") if options[k]]:
        raise UserError("--code is measured by itself", where="command line", found=" and ".join(beside) +
                        " beside it", fix="run posttrain eval twice")
    if not options["allow_code_execution"]:
        raise UserError("these problems run programs that the model wrote", where="--code",
                        fix="add --allow_code_execution: they run in a sandbox that the kernel enforces")
    try:
        ks = sorted({int(part) for part in options["k"].split(",")})
    except ValueError:
        ks = [0]
    if ks[0] < 1 or ks[-1] > options["samples"]:
        raise UserError("`k` has no valid value", where="--k", found=options["k"],
                        expected=f"whole numbers from 1 to samples ({options['samples']}), such as 1,10")
    if options["samples"] > 1 and options["temperature"] == 0:
        raise UserError("several samples at temperature 0 are all the same", where="--samples",
                        fix="set --temperature 0.8, or drop --samples")
    return ks


def run(command, ks: list[int], folder: Path) -> int:
    """Ask, run, print, write: 0."""
    from posttrain.eval.passk import judge_programs, read_problems, tallies
    from posttrain.eval.sandbox import check as check_sandbox

    options, settings = command.options, command.settings
    check_sandbox()
    console = make_console(to_stderr=options["json"])
    how = how_to_answer(command) | {"system": options["system"]}
    problems = read_problems(options["code"], options["limit"])
    models, lines, base = [], [], None
    for name in command.words:
        console.print(f"{name}: {options['samples']} programs for each of {len(problems):,} problems …", style="dim",
                      markup=False)
        asked = [[{"role": "user", "content": p.asked}] for p in problems for _ in range(options["samples"])]
        answers = _answers(name, asked, settings, how)
        texts = [answers[i:i + options["samples"]] for i in range(0, len(answers), options["samples"])]
        programs = [[p.program(t) for t in several] for p, several in zip(problems, texts, strict=True)]
        console.print(f"{name}: running {len(answers):,} programs …", style="dim", markup=False)
        verdicts = judge_programs(problems, programs)
        found = tallies(verdicts, ks)
        models.append({"model": name} | {k: _figure(t, base and base[k], settings.seed) for k, t in found.items()})
        base = base or found
        lines += [{"model": name, "problem": p.name, "program": program} | asdict(v)
                  for p, several, judged in zip(problems, programs, verdicts, strict=True)
                  for program, v in zip(several, judged, strict=True)]
    result = {"models": models, "code": options["code"], "problems": len(problems), "samples": options["samples"],
              "how": how, "version": __version__}
    (folder / "eval.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    (folder / "programs.jsonl").write_text("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in lines), "utf-8")
    console.print(_table(models, ks))
    console.print(f"written: {folder / 'eval.json'}, programs.jsonl", markup=False, soft_wrap=True)
    if options["json"]:
        print_json(result)
    return 0


def _answers(name: str, asked: list, settings, how: dict[str, Any]) -> list[str]:
    from posttrain.eval.endpoint import Endpoint, is_endpoint
    from posttrain.eval.words import said

    if is_endpoint(name):
        opening = [{"role": "system", "content": how["system"]}] if how["system"] else []
        rest = {k: v for k, v in how.items() if k != "system"}
        return [said(a.text) for a in Endpoint(name).answers([opening + c for c in asked], **rest)]
    from posttrain.app.assistant import load

    made = [said(a.text) for a in load(name, settings).answers(asked, **how)]
    gc.collect()
    return made


def _figure(tally, base, seed: int) -> dict[str, Any]:
    from posttrain.eval.intervals import difference, interval

    made = {k: v for k, v in asdict(interval(tally, seed)).items() if k != "p"}
    return made | ({"difference": asdict(difference(base, tally, seed))} if base else {})


def _table(models: list[dict[str, Any]], ks: list[int]) -> Table:
    table = Table()
    table.add_column("figure")
    for m in models:
        table.add_column(Text(m["model"]))
    for k in ks:
        cells = []
        for m in models:
            f = m[f"pass@{k}"]
            text = f"{f['value']:.1%} [{f['low']:.1%}, {f['high']:.1%}]"
            if gap := f.get("difference"):
                text += f"\n{gap['value']:+.1%} [{gap['low']:+.1%}, {gap['high']:+.1%}] p={gap['p']:.2g}"
            cells.append(Text(text))
        table.add_row(f"pass@{k}", *cells)
    return table
