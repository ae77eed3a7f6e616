"""The help texts, drawn from the tables of verbs and settings, in the width of the terminal."""

from __future__ import annotations

import shutil
import textwrap
from typing import Any

from posttrain.app.arguments import type_of
from posttrain.app.verbs import EVERYWHERE, VERBS, Option, Verb, groups
from posttrain.core.config import Settings

INTRO = "posttrain: turn a base language model into an assistant, and see every token that was trained."


def overview(width: int | None = None) -> str:
    """All verbs, one line each."""
    width = width or _width()
    rows = [(f"posttrain {v.name}", v.summary) for v in VERBS.values()]
    left = max(len(a) for a, _ in rows) + 2
    lines = [*_wrap(INTRO, width), "", "usage: posttrain VERB [CONFIG.yaml] [--key value …]", "",
             *_two_columns(rows, width, left), "",
             *_wrap("`posttrain VERB --help` lists its keys; `posttrain --version` prints the version.", width)]
    return "\n".join(lines)


def verb_help(verb: Verb, width: int | None = None) -> str:
    """One verb: usage, what it does, its keys by group with their defaults, examples."""
    width = width or _width()
    words = [*verb.words, *(["[CONFIG.yaml]"] if verb.takes_config else []),
             *(["[DATA …]"] if verb.takes_data_words else []), "[--key value …]"]
    lines = [*_wrap(f"usage: posttrain {verb.name} {' '.join(words)}", width), "",
             *_wrap(_sentence(verb.summary), width)]
    if verb.about:
        lines += _wrap(verb.about, width)
    if verb.takes_config:
        lines += _wrap("CONFIG.yaml (or a run folder) holds any of the keys; the command line wins.", width)
    parts = {group: [_key_row(n) for n in names if n in verb.keys] for group, names in groups().items()}
    parts["options"] = [_option_row(o) for o in (*verb.options, *EVERYWHERE)]
    left = max(len(a) for rows in parts.values() for a, _ in rows) + 2
    for group, rows in parts.items():
        if rows:
            lines += ["", f"{group}:", *_two_columns(rows, width, left)]
    if verb.examples:
        lines += ["", "examples:", *(f"  {e}" for e in verb.examples)]
    return "\n".join(lines)


def _key_row(name: str) -> tuple[str, str]:
    field = next(f for n, f in Settings.model_fields.items() if (f.alias or n) == name)
    bare = field.annotation is bool and field.default is False
    flag = f"--{name}" if bare else f"--{name} {type_of(name)}"
    return flag, f"{field.description}{_default(field.default)}"


def _option_row(option: Option) -> tuple[str, str]:
    value = {"bool": "", "int": " N", "float": " X"}.get(option.kind, " TEXT")
    return f"--{option.name}{value}", f"{option.doc}{_default(option.default)}"


def _default(value: Any) -> str:
    if value is None or value is False or value in ([], {}):
        return ""
    text = ", ".join(str(v) for v in value) if isinstance(value, list) else f"{value:g}" if isinstance(
        value, float) else str(value).lower() if value is True else str(value)
    return f" [{text}]"


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


def _two_columns(rows: list[tuple[str, str]], width: int, left: int) -> list[str]:
    """Left (that wide, within reason) and right, wrapped; where a left one is too wide, the right goes below it."""
    left = min(left, 30 if width >= 72 else 8)
    lines = []
    for a, b in rows:
        wrapped = textwrap.wrap(b, max(width - left - 2, 20), break_on_hyphens=False)
        if len(a) + 2 > left:
            lines.append(f"  {a}")
        else:
            lines.append(f"  {a:<{left}}{wrapped.pop(0) if wrapped else ''}".rstrip())
        lines += [" " * (left + 2) + w for w in wrapped]
    return lines


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(width, 20), break_on_hyphens=False)


def _width() -> int:
    return max(40, min(shutil.get_terminal_size((100, 24)).columns, 120))
