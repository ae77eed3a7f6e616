"""`posttrain data show|check|table`: the rows, looked at with the eyes of the trainer. No torch here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from posttrain.app.arguments import Command
from posttrain.app.screen import make_console, print_json
from posttrain.core.config import Settings
from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Row

SCANNED = 20_000  # rows among which the worst are looked for, unless --worst is given
HTML_ROWS = 50


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


def show(command: Command) -> int:
    """Rows token by token: in the terminal, as a page, or as JSON lines."""
    _check_options(command.options)
    from posttrain.data.read import open_sources

    settings, options = command.settings, command.options
    console = make_console(to_stderr=options["json"])
    sources = open_sources(settings.data, columns=settings.columns, objective=settings.objective,
                           ranked_pairs=settings.ranked_pairs)
    places = _one_row(sources, options["row"]) if options["row"] else _places(sources)
    spec = tokenizer_of(settings)
    renderer = renderer_of(settings, spec)
    lost: Counter[str] = Counter()
    rendered = _rendered(settings, renderer, _read(settings, sources, places, lost))
    if options["json"]:
        _json_lines(rendered, spec, options["limit"], lost)
    else:
        _picked(console, command, rendered, spec)
    for reason, count in lost.items():
        console.print(f"not shown: {count:,} {reason}", markup=False, style="dim")
    return 0


def _check_options(options: dict) -> None:
    if options["json"] and options["html"]:
        raise UserError("--json and --html exclude each other", where="command line", fix="drop one")
    if options["json"] and options["worst"]:
        raise UserError("--json lists rows in file order; --worst belongs to the terminal and to --html",
                        where="command line", fix="drop one")
    if options["row"] and (options["limit"] is not None or options["worst"] is not None):
        raise UserError("--row shows one row; --limit and --worst pick others", where="command line", fix="drop one")


def _json_lines(rendered, spec, limit: int | None, lost: Counter[str]) -> None:
    """One line per sequence, as they come."""
    from posttrain.data.show import to_json_line

    for n, (_, made) in enumerate(rendered):
        if n == limit:
            break
        if isinstance(made, RowError):
            lost[f"malformed: {made.message}"] += 1
            continue
        if made.dropped:
            lost[f"dropped: {made.dropped}"] += 1
        for sequence in made.sequences:
            sys.stdout.write(to_json_line(sequence, spec) + "\n")


def _picked(console: Console, command: Command, rendered, spec) -> None:
    """The first rows and the worst, in the terminal or as a page."""
    from posttrain.data.show import pick, print_rows

    options, page = command.options, command.options["html"]
    if options["row"]:
        first, worst, scanned = None, 0, None
    else:
        first = options["limit"] if options["limit"] is not None else HTML_ROWS if page else 3
        worst = options["worst"] if options["worst"] is not None else 5 if page else 1
        scanned = SCANNED if options["worst"] is None else None
    counted = _Counted(rendered, scanned)
    with console.status("looking for the worst rows …") if console.is_terminal and worst else nullcontext():
        shown = pick(counted, first, worst)
    if options["row"]:
        for item in shown:
            item.why = f"row {options['row']}"
    if page:
        from posttrain.data.show_html import to_html

        Path(page).write_text(to_html(shown, spec), "utf-8")
        console.print(f"{len(shown)} rows written to {page}", markup=False, soft_wrap=True)
    else:
        print_rows(console, shown, spec)
    if worst and counted.stopped:
        console.print(f"\nThe worst are those of the first {scanned:,} rows; --worst {worst} looks at all.",
                      style="dim")


def renderer_of(settings: Settings, spec):
    """The renderer of a run with these settings, its thinking switch decided as a run decides it."""
    from posttrain.data.render import rendering
    from posttrain.data.updates import Updates

    updates = Updates(settings.model_copy(update={"bad_rows": "skip"}))
    updates.head(rendering(settings, spec))
    return updates.renderer


def mask_of_first_row(settings: Settings):
    """The first row of the data in colour, with the legend above it."""
    from rich.console import Group

    from posttrain.app.table import first_rows
    from posttrain.data.show import as_text, legend

    spec = tokenizer_of(settings)
    made = renderer_of(settings, spec).render(first_rows(settings, 1))[0]
    if isinstance(made, RowError):
        raise made
    return Group(legend(), *(as_text(s, spec) for s in made.sequences))


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


def _places(sources) -> Iterator[tuple]:
    return ((source, i) for source in sources for i in range(len(source)))


def _one_row(sources, line: int) -> list[tuple]:
    found = [(s, i) for s in sources if (i := s.find(str(line))) is not None]
    if not found:
        raise UserError(f"no row begins at line {line}", where=", ".join(s.spec for s in sources),
                        expected="the 1-based line where a row begins, as errors and rejected.jsonl name it",
                        fix="leave out --row to see the first rows with their lines")
    return found


def _read(settings: Settings, sources, places, lost: Counter[str]) -> Iterator[Row]:
    for source, i in places:
        row = source.row_or_error(i, settings.bad_rows)
        if isinstance(row, Row):
            yield row
        else:
            lost[f"malformed: {row.message}"] += 1


def _rendered(settings: Settings, renderer, rows: Iterator[Row]) -> Iterator[tuple]:
    from posttrain.data.show import render_all

    for row, made in render_all(rows, renderer):
        if isinstance(made, RowError) and settings.bad_rows == "error":
            raise made
        yield row, made


class _Counted:
    """An iterator that ends after `most` items and knows whether it did."""

    def __init__(self, items: Iterator, most: int | None):
        self.items, self.most, self.stopped = items, most, False

    def __iter__(self) -> Iterator:
        for n, item in enumerate(self.items):
            if n == self.most:
                self.stopped = True
                return
            yield item

