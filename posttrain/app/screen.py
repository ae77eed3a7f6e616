"""The console that a verb writes to: standard output, or standard error where standard output holds JSON."""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from rich.console import Console


def make_console(to_stderr: bool = False) -> Console:
    """A console as wide as the terminal; 100 columns where there is none."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() else shutil.get_terminal_size((100, 24)).columns
    return Console(file=stream, width=width, highlight=False)


def print_json(value: Any) -> None:
    """One JSON value on standard output, the only thing a verb writes there under --json."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")
    sys.stdout.flush()


def next_commands(console: Console, commands: list[tuple[str, str]]) -> None:
    """What to type next: (command, what it does) lines that can be copied as they stand."""
    width = min(60, max(len(c) for c, _ in commands))
    console.print("\n[bold]next[/bold]")
    for command, what in commands:
        console.print(f"  {command:<{width}}  # {what}", soft_wrap=True, markup=False)


def print_example(console: Console, sequence, spec, most: int = 200) -> None:
    """The tokens of one sequence with their weights in colour; of a long one those around its first trained token."""
    from posttrain.core.sequence import Sequence
    from posttrain.data.show import print_sequence

    length = len(sequence)
    start = max(0, min(int((sequence.weights != 0).argmax()) - most // 2, length - most))
    part = slice(start, start + most)
    shown = Sequence(sequence.ids[part], sequence.weights[part], sequence.reasons[part], sequence.origin)
    part_of = f" ({len(shown)} of {length} tokens)" if length > most else ""
    console.print(f"\n{sequence.origin}, token by token{part_of}", markup=False, soft_wrap=True)
    print_sequence(console, shown, spec)
    console.print()
