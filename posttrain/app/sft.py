"""`posttrain sft`: settings in, a run folder out; what is printed on the way."""

from __future__ import annotations

import json
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from posttrain.app.arguments import Command
from posttrain.app.progress import Progress
from posttrain.app.reporters import need, open_reporters
from posttrain.app.resume import check_same_run, resumed_values
from posttrain.app.run import Run
from posttrain.app.runs import fresh_run
from posttrain.app.screen import make_console, next_commands, print_example, print_json
from posttrain.core.config import Settings, choices, make_settings
from posttrain.core.errors import SettingsError, UserError
from posttrain.data.read import parse_spec


class Interrupted(Exception):
    """The run was asked to stop and left a checkpoint; `code` is the exit status."""

    def __init__(self, run: Run, code: int):
        super().__init__(str(run))
        self.run, self.code = run, code


def main(command: Command) -> int:
    """Train; exit 0 when finished, 130 or 143 after a signal with its checkpoint written."""
    console = make_console(to_stderr=command.options["json"])
    try:
        run = run_sft(command.settings, console)
    except Interrupted as e:
        return e.code
    if command.options["json"]:
        print_json({"run": str(run.path), "model": str(run.model_path), "status": run.status, "ledger": run.ledger,
                    "metrics": run.metrics[-1:]})
    return 0


def sft(*, console: Console | None = None, **values: Any) -> Run:
    """Supervised fine-tuning from Python: the keys of `posttrain sft --help` -> the finished Run.

    With `resume` and `output_dir` the other keys come from the run. Raises UserError (SettingsError for wrong keys).
    Logs go to `console`, by default standard error.
    """
    if values.get("resume"):
        values = resumed_values(values)
    return run_sft(make_settings(values), console or make_console(to_stderr=True))


def run_sft(settings: Settings, console: Console, closing: bool = True) -> Run:
    """One whole run -> its Run; raises Interrupted where a signal ended it. `closing` prints the next commands."""
    began = time.perf_counter()

    def note(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    if settings.resume:
        check_same_run(settings, note)
        if (status := _status(settings)).get("status") == "finished":
            note(f"this run is already finished (update {status['step']}): {settings.output_dir}")
            return Run(settings.output_dir)
    for name in settings.report_to:
        need(name)
    folder = run_folder(settings)
    settings, chosen = settle(settings, folder)
    for key, value, why in chosen:
        note(f"{key} = {value}: {why}")
    from posttrain.data.loader import Loader

    with Loader(settings) as loader:  # indexing and rendering go on in their own process from here
        try:
            settings = _keep_architecture(settings, folder)
            ref, spec = _with_errors_of(loader, partial(_tokenizer, settings, folder, note))
            settings = _settle_model(settings, ref, spec, note)
            loader.tokenizer(spec)
            session = _open(settings, folder, ref, spec, loader, note, began)
        except BaseException:
            if not settings.resume:  # nothing was trained: leave no folder that is in the way of the next try
                shutil.rmtree(folder, ignore_errors=True)
            raise
        _tell_data(session, note, console)
        status = _train(session, console, note)
        run = Run(folder)
        if status != "finished":
            raise Interrupted(run, _how_to_go_on(session, status, folder, note))
        from posttrain.app.card import model_card

        session.export(model_card(session.loop.settings, session))
    _tell_result(run, session, note)
    if closing:
        _next(console, run, settings, session.loop.loader.opened.sources)
    return run


def _open(settings, folder, ref, spec, loader, note, began):
    """The session: torch is imported here, while the loader's process works."""
    from posttrain.train.objectives.sft import SFT
    from posttrain.train.session import open_session

    return open_session(settings, folder, ref, loader, spec, SFT(), note, began)


def settle(settings: Settings, folder: Path) -> tuple[Settings, list[tuple[str, Any, str]]]:
    """Settings with the values that the program chooses filled in, and those choices with their reasons."""
    chosen = choices(settings)
    filled = {key: value for key, value, _ in chosen} | {"output_dir": str(folder)}
    return settings.model_copy(update=filled), chosen


def run_folder(settings: Settings) -> Path:
    """The run's folder: a fresh name, or output_dir, which must not hold anything unless it is resumed."""
    if settings.output_dir is None:
        return fresh_run("sft")
    folder = Path(settings.output_dir)
    if settings.resume:
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        is_run = (folder / "config.yaml").is_file()
        raise UserError("the output folder is in use", where=str(folder),
                        found="a run" if is_run else "a file" if folder.is_file() else "other files",
                        fix=f"go on with `posttrain sft --output_dir {quote(str(folder))} --resume`, or name another "
                            "folder" if is_run else "name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _status(settings: Settings) -> dict[str, Any]:
    path = Path(settings.output_dir or ".") / "run.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _tokenizer(settings: Settings, folder: Path, note: Callable[[str], None]):
    """The model's reference and its tokenizer; a model from scratch has one named, or trained on the data."""
    from posttrain.data.tokenizer import load_tokenizer
    from posttrain.model.resolve import resolve_model

    ref = None if settings.architecture else resolve_model(settings.model)
    where = folder / "tokenizer"
    if settings.tokenizer:
        source = settings.tokenizer
    elif ref is not None:
        source = ref.tokenizer
    else:
        if not (where / "tokenizer.json").is_file():
            from posttrain.app.scratch import train_tokenizer

            train_tokenizer(settings, where, note)
        source = str(where)
    spec = load_tokenizer(source, chat_template=settings.chat_template, trust_remote_code=settings.trust_remote_code,
                          template_date=settings.template_date)
    note(f"chat template = {spec.template_name}: {spec.template_reason}")
    return ref, spec


def _with_errors_of(loader, step: Callable[[], Any]) -> Any:
    """The result of a step; if it fails, its error together with what is wrong with the data: both are shown."""
    try:
        return step()
    except UserError as error:
        try:
            loader.opened  # noqa: B018 - waits until the data is opened, which may raise
        except UserError as other:
            raise SettingsError([error, other]) from None
        raise


def _keep_architecture(settings: Settings, folder: Path) -> Settings:
    """A model from scratch takes its shape from a copy in the run folder: the run can be resumed without the file."""
    if not settings.architecture:
        return settings
    if settings.resume:
        return settings.model_copy(update={"architecture": str(folder / "architecture.yaml")})
    if not Path(settings.architecture).is_file():
        raise UserError("the architecture file does not exist", where=settings.architecture,
                        fix="name a YAML file of config keys with model_config")
    copied = shutil.copyfile(settings.architecture, folder / "architecture.yaml")
    return settings.model_copy(update={"architecture": str(copied)})


def _settle_model(settings: Settings, ref, spec, note: Callable[[str], None]) -> Settings:
    """Settings with what the model and its tokenizer decide: an adapter's shape, and a template's "today"."""
    update: dict[str, Any] = {"template_date": spec.date}
    if ref is not None and ref.adapter and settings.method == "lora":
        from posttrain.model.adapters import continued_shape

        update |= continued_shape(settings, ref.adapter)
        note(f"lora_r = {update['lora_r']}, lora_alpha = {update['lora_alpha']:g}, lora_dropout = "
             f"{update['lora_dropout']:g}: those of the adapter that is continued")
    return settings.model_copy(update=update)


def _tell_data(session, note: Callable[[str], None], console: Console) -> None:
    loader, head = session.loop.loader, session.head
    for source in loader.opened.sources:
        share = f", {source['share']:.0%} of every update" if source["share"] is not None else ""
        held = f", {source['held_out']:,} held out" if source["held_out"] else ""
        note(f"data: {source['spec']}: {source['rows']:,} rows, format {source['format']}{share}{held}")
    switch = "the template's default" if head.thinking is None else str(head.thinking).lower()
    note(f"enable_thinking = {switch}: {head.why}")
    kept, read = head.ledger.rows_trained, head.ledger.rows_read
    dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(head.ledger.rows_dropped.items()))
    note(f"first {read:,} rows: {kept:,} trained" + (f", dropped: {dropped}" if dropped else "")
         + f"; {head.trained_share:.1%} of their tokens are trained")
    if head.example is not None:
        print_example(console, head.example, session.spec)
    note(f"{loader.total:,} updates, {loader.updates_per_epoch:,} per epoch of {loader.opened.rows_per_epoch:,} rows")


def _train(session, console: Console, note: Callable[[str], None]) -> str:
    loop, settings = session.loop, session.loop.settings
    progress = Progress(loop.loader.total, console, start=loop.state.step, every=settings.logging_steps)
    caught: list[int] = []

    def stop(number, frame) -> None:
        if caught:
            raise KeyboardInterrupt
        caught.append(number)
        progress.note("stopping after this update (again: at once)")

    def say(line: dict[str, Any]) -> None:
        progress.update(line)
        if "eval_loss" in line:
            progress.note(f"update {line['step']}: eval_loss {line['eval_loss']:.4f}")
        for reporter in reporters:
            reporter.log(line)

    loop.should_stop = lambda: bool(caught)
    loop.say = say
    reporters = open_reporters(settings, loop.record.folder)
    old = _catch(stop)
    try:
        with progress:
            status = session.run()
    except KeyboardInterrupt:
        note(f"stopped at once; go on with: posttrain sft --output_dir {quote(str(loop.record.folder))} --resume")
        raise
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for reporter in reporters:
            reporter.close()
    return status if status == "finished" else signal.Signals(caught[0]).name


def _catch(stop) -> dict[int, Any]:
    """Handle SIGINT and SIGTERM by `stop`, in the main thread only (elsewhere Python cannot) -> the old handlers."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}


def _how_to_go_on(session, name: str, folder: Path, note: Callable[[str], None]) -> int:
    note(f"stopped by {name} after update {session.loop.state.step} of {session.loop.loader.total}; "
         f"checkpoint {folder / 'checkpoints' / str(session.loop.state.step)}")
    note(f"go on with: posttrain sft --output_dir {quote(str(folder))} --resume")
    return 128 + signal.Signals[name]


def _tell_result(run: Run, session, note: Callable[[str], None]) -> None:
    rows, tokens = run.ledger["rows"], run.ledger["tokens"]
    dropped = sum(rows["dropped"].values())
    note(f"ledger: rows read {rows['read']:,} = trained {rows['trained']:,} + dropped {dropped:,}"
         + (f" ({', '.join(f'{n} {r}' for r, n in rows['dropped'].items())}; see rejected.jsonl)" if dropped else "")
         + f"; {rows['cut']:,} of the trained were cut")
    note(f"        tokens rendered {tokens['rendered']:,} = trained {tokens['trained']:,} + masked "
         f"{tokens['masked']:,} + cut {tokens['cut']:,} + dropped {tokens['dropped']:,}")
    if (before := run.status.get("eval_loss_before")) is not None:
        after = session.loop.state.eval_loss
        note(f"held-out loss: {before:.4f} before, {after:.4f} after ({(after - before) / before:+.1%})")
    note(f"model: {run.model_path}")


def _next(console: Console, run: Run, settings: Settings, sources: list[dict[str, Any]]) -> None:
    """Commands that can be copied as they stand; the questions to compare on are those of the data."""
    folder, commands = quote(str(run.path)), []
    commands.append((f"posttrain chat {folder}", "talk to it"))
    asked = next((s["spec"] for s in sources if s["format"] != "text"), None)
    if not settings.architecture and asked:
        questions = quote(parse_spec(asked).path)
        commands.append((f"posttrain compare {quote(settings.model)} {folder} --questions {questions} --limit 5",
                         "answers side by side"))
    commands.append((f"posttrain data show {folder}", "every trained token"))
    next_commands(console, commands)
