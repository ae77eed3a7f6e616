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
    width = max(len(c) for c, _ in commands)
    console.print("\n[bold]next[/bold]")
    for command, what in commands:
        console.print(f"  {command:<{width}}  # {what}", soft_wrap=True, markup=False)
