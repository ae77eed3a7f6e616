"""`posttrain data show|check|table`: the rows, looked at with the eyes of the trainer. No torch here."""

from __future__ import annotations

from pathlib import Path

from rich.progress import Progress

from posttrain.app.arguments import Command
from posttrain.app.screen import make_console, print_json
from posttrain.core.config import Settings
from posttrain.core.errors import UserError


def table(command: Command) -> int:
    """The first rows as a prompt/response table."""
    from posttrain.app.table import as_json, as_table, first_rows

    rows = first_rows(command.settings, command.options["limit"])
    if command.options["json"]:
        print_json([as_json(row) for row in rows])
    else:
        make_console().print(as_table(rows))
    return 0


def check(command: Command) -> int:
    """Every row through the checks of a run: 0 with nothing found, 1 with findings."""
    from posttrain.data.check import check as check_rows

    as_json = command.options["json"]
    console = make_console(to_stderr=as_json)
    spec = tokenizer_of(command.settings)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("checking", total=None)
        report = check_rows(command.settings, spec,
                            progress=lambda done, total: bar.update(task, completed=done, total=total))
    if as_json:
        print_json(report.to_json())
    else:
        report.print(console)
    return 1 if report.findings else 0


def tokenizer_of(settings: Settings):
    """The tokenizer that a run with these settings would render with; a folder with only a tokenizer will do."""
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.resolve import resolve_model

    if settings.tokenizer:
        source = settings.tokenizer
    elif settings.architecture:
        source = str(Path(settings.output_dir or "") / "tokenizer")
        if not settings.output_dir or not Path(source).is_dir():
            raise UserError("a model from scratch has its tokenizer trained by the run", where="model_config",
                            fix="name a tokenizer folder with --tokenizer, or the run folder once it has begun")
    elif (Path(settings.model) / "tokenizer_config.json").is_file():
        source = settings.model
    else:
        source = resolve_model(settings.model).tokenizer
    return load_tokenizer(source, chat_template=settings.chat_template, trust_remote_code=settings.trust_remote_code,
                          template_date=settings.template_date)
