"""`posttrain doctor RUN`: the classic troubles of a run, each with its evidence and what to change."""

from __future__ import annotations

from pathlib import Path

from posttrain.app.screen import make_console, print_json


def main(command) -> int:
    """0 where nothing is found, 1 where something is."""
    from posttrain.eval.doctor import RULES, as_json, examine

    console = make_console(to_stderr=command.options["json"])
    folder = Path(command.words[0])
    troubles = examine(folder)
    for trouble in troubles:
        console.print(trouble.name, style="bold red", markup=False)
        for line in trouble.evidence:
            console.print(f"  seen    {line}", markup=False, soft_wrap=True)
        console.print(f"  change  {trouble.change}", markup=False, soft_wrap=True)
    if not troubles:
        console.print(f"nothing found ({len(RULES)} rules)")
    if command.options["json"]:
        print_json({"run": str(folder), "troubles": as_json(troubles)})
    return 1 if troubles else 0
