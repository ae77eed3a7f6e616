"""The command line as data: verb, words, settings values, options. Every problem is collected, none stops the search.

Flags are taken whole (no prefix stands for a longer one), `-` and `_` are the same inside a name, and `--key value`
equals `--key=value`. A key may stand in CONFIG.yaml, on the command line, or both: the command line wins.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.app.resume import check_objective, names_a_run
from posttrain.app.runs import config_of, resumable
from posttrain.app.verbs import EVERYWHERE, VERBS, Option, Verb
from posttrain.core import ranks
from posttrain.core.config import Settings, key_names, make_settings, read_config, unknown_key
from posttrain.core.errors import SettingsError, UserError

COMMAND_LINE = "command line"
ANY_MODEL = "a run, a checkpoint, an adapter, a Hugging Face folder, a hub id"
SPLIT_AT_COMMA = {"lora_target_modules", "report_to"}  # never data: a path may hold a comma


@dataclass
class Command:
    """One parsed command. `given` are the settings keys the user named anywhere; `settings` holds all of them."""

    verb: Verb
    words: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)

    @property
    def given(self) -> set[str]:
        return set(self.values)


def kind_of(name: str) -> str:
    """What a settings key takes on the command line: bool, list, or one value."""
    annotation = _fields()[name].annotation
    if annotation is bool:
        return "bool"
    return "list" if typing.get_origin(annotation) is list else "value"


def find_verb(argv: list[str]) -> tuple[Verb, list[str]]:
    """The verb that `argv` begins with and the rest; an unknown one is an error that names the nearest."""
    for count in (2, 1):
        if (verb := VERBS.get(" ".join(argv[:count]))) is not None:
            return verb, argv[count:]
    family = [name for name in VERBS if name.startswith(f"{argv[0]} ")]
    if family and (len(argv) < 2 or argv[1].startswith("-")):
        raise UserError(f"`posttrain {argv[0]}` needs to know what to do", where=COMMAND_LINE,
                        expected=", ".join(f"posttrain {name}" for name in family), fix=f"try `posttrain {family[0]}`")
    typed = " ".join(argv[:2]) if family else argv[0]
    near = difflib.get_close_matches(typed, family or list(VERBS), n=1, cutoff=0.5)
    raise UserError(f"unknown verb `{typed}`", where=COMMAND_LINE, expected=", ".join(family or VERBS),
                    fix=f"did you mean `posttrain {near[0]}`?" if near else "see `posttrain --help`")


def parse(argv: list[str]) -> Command:
    """`argv` without the program's name -> Command; SettingsError with every problem at once. `--help` is not here."""
    verb, rest = find_verb(argv)
    command, errors = Command(verb), []
    command.options = {o.name: o.default for o in (*verb.options, *EVERYWHERE)}
    words = _flags(command, rest, errors)
    _words(command, words, errors)
    if verb.trains:
        _resume(command, errors)
        if wrong := check_objective(verb.name, command.values, command.where.get("objective", "")):
            errors.append(wrong)
        command.values["objective"] = verb.name
    try:
        command.settings = make_settings(command.values, command.where)
    except SettingsError as e:
        errors += e.errors
    if errors:
        raise SettingsError(errors)
    return command


def _flags(command: Command, rest: list[str], errors: list[UserError]) -> list[str]:
    """Read flags into `command`; return the words between them."""
    words, i, seen = [], 0, set()
    own = {o.name: o for o in (*command.verb.options, *EVERYWHERE)}
    while i < len(rest):
        text, i = rest[i], i + 1
        if not text.startswith("--") or text == "--":
            if text.startswith("-"):
                errors.append(UserError(f"unknown argument `{text}`", where=COMMAND_LINE,
                                        fix="keys begin with two dashes, such as --seed 1"))
            else:
                words.append(text)
            continue
        typed, equals, value = text[2:].partition("=")
        name = typed.replace("-", "_")
        kind = own[name].kind if name in own else kind_of(name) if name in command.verb.keys else None
        if not equals:
            following = rest[i] if i < len(rest) else None
            takes = following is not None and not following.startswith("--")
            if kind == "bool":
                takes = takes and following.lower() in ("true", "false")
                value = "true"
            elif kind is not None and not takes:
                errors.append(UserError(f"`--{typed}` has no value", where=COMMAND_LINE,
                                        fix=f"write --{typed} VALUE, or --{typed}=VALUE where it begins with dashes"))
                continue
            if takes:  # an unknown key too: what was meant as its value is not reported as a word
                value, i = following, i + 1
        if kind is None:
            errors.append(_unknown_flag(command.verb, name))
            continue
        if name in seen and kind != "list":
            errors.append(UserError(f"`--{typed}` is given twice", where=COMMAND_LINE, fix="keep one of the two"))
        seen.add(name)
        if name in own:
            _option(command, own[name], value, errors)
        else:
            _key(command, name, kind, value)
    return words


def _key(command: Command, name: str, kind: str, value: str) -> None:
    if kind == "list":
        parts = value.split(",") if name in SPLIT_AT_COMMA else [value]
        before = command.values.get(name) or []
        command.values[name] = [*before, *(p.strip() if len(parts) > 1 else p for p in parts)]
    elif value.lower() in ("none", "null") and type(None) in typing.get_args(_fields()[name].annotation):
        command.values[name] = None
    else:
        command.values[name] = value
    command.where[name] = COMMAND_LINE


def _option(command: Command, option: Option, value: str, errors: list[UserError]) -> None:
    wrong, expected = False, {"int": "a whole number", "float": "a number", "bool": "true or false"}.get(option.kind)
    try:
        if option.kind == "bool":
            made: Any = {"true": True, "false": False}[value.lower()]
        else:
            made = {"int": int, "float": float}.get(option.kind, str)(value)
        wrong = option.kind == "float" and not math.isfinite(made)
    except (ValueError, KeyError):
        wrong = True
    else:
        if option.least is not None and made < option.least:
            wrong, expected = True, f"at least {option.least:g}"
        if option.most is not None and made > option.most:
            wrong, expected = True, f"at most {option.most:g}"
    if wrong:
        errors.append(UserError(f"`{option.name}` has no valid value", where=COMMAND_LINE, found=repr(value),
                                expected=expected))
    elif option.kind == "list":
        command.options[option.name] = [*command.options[option.name], made]
    else:
        command.options[option.name] = made


def _unknown_flag(verb: Verb, name: str) -> UserError:
    """The error for a flag this verb does not take: another verb's, a peer's, or a mistyped one."""
    if name in key_names():
        return UserError(f"`--{name}` changes nothing in `posttrain {verb.name}`", where=COMMAND_LINE,
                         fix=f"drop it; `posttrain {verb.name} --help` lists what it takes")
    names = [o.name for o in (*verb.options, *EVERYWHERE)] + list(verb.keys)
    return unknown_key(name, COMMAND_LINE, names, verb.name)


def _words(command: Command, words: list[str], errors: list[UserError]) -> None:
    """Positional arguments: the verb's own words, a CONFIG.yaml (or a run folder), or data files."""
    verb, over = command.verb, []
    for word in words:
        config = config_of(word) if verb.takes_config else None
        if len(command.words) < len(verb.words) or (verb.words and verb.words[-1].endswith("…")):
            command.words.append(word)
        elif config is not None:
            _config(command, config, errors)
        elif verb.takes_data_words:
            _key(command, "data", "list", word)
        else:
            over.append(word)
    for word in over:
        takes = " ".join(verb.words) or ("one CONFIG.yaml" if verb.takes_config else "no words")
        fix = f"--data {word}, if it holds the rows" if verb.takes_config else f"see `posttrain {verb.name} --help`"
        errors.append(UserError(f"`posttrain {verb.name}` cannot use `{word}`", where=COMMAND_LINE,
                                expected=takes, fix=fix))
    missing = verb.words[len(command.words):]
    if missing and not errors:  # an unknown flag may have taken the word
        errors.append(UserError(f"`posttrain {verb.name}` needs {' and '.join(missing)}", where=COMMAND_LINE,
                                expected=f"{ANY_MODEL}, or `builtin`", fix=f"for example `{verb.examples[0]}`"))


def _config(command: Command, path: Path, errors: list[UserError]) -> None:
    """Put the keys of a settings file under those of the command line; a key written twice is an error."""
    try:
        values = read_config(path)
    except UserError as e:
        errors.append(e)
        return
    lines: dict[str, int] = {}
    for node, _ in getattr(yaml.compose(path.read_text("utf-8"), Loader=yaml.SafeLoader), "value", []):
        name, line = str(node.value).replace("-", "_"), node.start_mark.line + 1
        if name in lines:
            errors.append(UserError(f"`{name}` is given twice", where=f"{path}:{line}",
                                    found=f"also in line {lines[name]}", fix="keep one of the two"))
        lines[name] = line
    for typed, value in values.items():
        name = str(typed).replace("-", "_")
        if name not in command.values:
            command.values[name], command.where[name] = value, f"{path}:{lines.get(name, 1)}"


def _resume(command: Command, errors: list[UserError]) -> None:
    """`resume` needs its run: with `output_dir` alone, the run's own config.yaml gives the other keys."""
    folder = command.values.get("output_dir")
    if folder and ranks.restarts() and (Path(folder) / "config.yaml").is_file():
        command.values["resume"] = "true"  # the launcher starts the same command again after a process was lost
    if str(command.values.get("resume", False)).lower() != "true":
        return
    if folder is None:
        known = resumable()
        errors.append(UserError("`resume` does not say which run", where=command.where["resume"],
                                found="resumable here: " + (", ".join(known) or "none under runs/"),
                                fix=f"posttrain {command.verb.name} --output_dir {known[0] if known else 'RUN'} "
                                    "--resume"))
        return
    config = Path(folder) / "config.yaml"
    if not config.is_file() and names_a_run(command.values):
        return
    if not config.is_file():
        known = resumable()
        errors.append(UserError("there is no run to resume", where=str(folder), found="no config.yaml in it",
                                expected="one of " + ", ".join(known) if known else "the folder of a run",
                                fix="name the model or the data to start a new run there"))
        return
    _config(command, config, errors)


def _fields() -> dict[str, Any]:
    return {f.alias or name: f for name, f in Settings.model_fields.items()}


def type_of(name: str) -> str:
    """How `--help` writes the value of a settings key."""
    return _type_text(_fields()[name].annotation)


def _type_text(annotation: Any) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_text(a) for a in args if a is not type(None))
    if origin is list:
        return _type_text(args[0])
    if origin is dict:
        return "PART=COLUMN,…"
    return {bool: "true|false", int: "N", float: "X", str: "TEXT"}[annotation]
