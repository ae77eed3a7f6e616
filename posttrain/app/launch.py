"""One training run of any objective, from its settings to its model folder, and how signals end it."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from posttrain.app.narrate import judge_scores, tell_data, tell_how_to_go_on, tell_next, tell_pairs, tell_result
from posttrain.app.particulars import keep_end, keep_start
from posttrain.app.progress import Progress
from posttrain.app.reporters import Reporter, need, open_reporters
from posttrain.app.resume import check_same_run
from posttrain.app.run import Run
from posttrain.app.runs import fresh_run
from posttrain.app.stopping import handling, stop_now
from posttrain.core import ranks
from posttrain.core.choices import choices
from posttrain.core.config import Settings
from posttrain.core.errors import SettingsError, UserError
from posttrain.core.extras import need_extra

# What a start that was killed may have made before it wrote its settings: in the way of nothing.
BEGUN = {"tokenizer", "architecture.yaml", ".config.yaml.partial"}


class Interrupted(Exception):
    """The run was asked to stop and left a checkpoint; `code` is the exit status."""

    def __init__(self, folder: Path, code: int):
        super().__init__(f"{folder}: ended with exit status {code}")
        self.folder, self.code = folder, code


@handling(stop_now)
def launch(settings: Settings, console: Console, closing: bool = True) -> Run:
    """One whole run -> its Run; raises Interrupted where a signal ended it. `closing` prints the next commands."""
    began, notes = time.perf_counter(), []
    if settings.processes > 1 and not ranks.launched():
        return _launch_processes(settings, console)
    if not ranks.first():
        console = Console(quiet=True)

    def note(text: str) -> None:
        notes.append(text)
        console.print(text, markup=False, soft_wrap=True)

    if ranks.restarts():
        note(f"a process of the run was lost: start {ranks.restarts() + 1}, from the last checkpoint")
    if settings.resume:
        settings = check_same_run(settings, note)
        if (status := _status(settings)).get("status") == "finished":
            note(f"this run is already finished (update {status['step']}): {settings.output_dir}")
            return Run(settings.output_dir)
    _need_libraries(settings)
    score = None
    if settings.is_sampled:
        from posttrain.app.rewards import reward_function

        score = reward_function(settings.reward)
    folder = run_folder(settings) if ranks.world() == 1 else _common_folder(settings)
    settings, chosen = settle(settings, folder)
    for key, value, why in chosen:
        note(f"{key} = {value}: {why}")
    from posttrain.data.loader import Loader

    with Loader(settings) as loader, ranks.together():  # indexing and rendering go on in their own process from here
        try:
            ranks.begin(settings.device)
            with ranks.one_after_the_first():
                settings = _keep_architecture(settings, folder)
                ref, spec = _with_errors_of(loader, partial(_tokenizer, settings, folder, note))
            settings = _settle_model(settings, ref, spec, note)
            loader.tokenizer(spec)
            session = _open(settings, folder, ref, spec, loader, note, began, score)
            reporters = open_reporters(session.loop.settings, folder) if ranks.first() else []
        except BaseException:
            # nothing was trained: leave no folder that is in the way of the next try
            if not settings.resume and ranks.first() and not ranks.restarts():
                shutil.rmtree(folder, ignore_errors=True)
            raise
        tell_data(session, note, console)
        keep_start(session, settings, notes)
        status = _train(session, console, note, reporters)
        run = Run(folder)
        if status != "finished":
            keep_end(session)
            raise Interrupted(folder, tell_how_to_go_on(session, status, folder, note))
        from posttrain.app.card import model_card

        with _saying_how_to_go_on(session, note):
            session.export(model_card(session.loop.settings, session))
        judged = judge_scores(session) if settings.objective == "reward" else None
        keep_end(session)
        ranks.wait()
    ranks.end()
    if not ranks.first():
        return run
    tell_result(run, session, note)
    if judged is not None:
        tell_pairs(run, judged, note)
    if closing:
        tell_next(console, run, settings, session.loop.loader.opened.sources)
    return run


def _need_libraries(settings: Settings) -> None:
    """Stop before anything is begun where a library of these settings is missing."""
    for name in settings.report_to:
        need(name)
    if settings.method == "qlora":
        need_extra("bitsandbytes", "qlora", where="method", found="qlora", instead="set method: lora")


def _launch_processes(settings: Settings, console: Console) -> Run:
    """The run in processes of its own, of which the first one prints."""
    from posttrain.app.processes import run_processes

    folder = run_folder(settings)
    code = run_processes(settings, folder, console)
    if code:
        raise Interrupted(folder, code)
    return Run(folder)


def _common_folder(settings: Settings) -> Path:
    """The run's folder where several processes were started beside each other: all must name the same one."""
    if settings.output_dir is None:
        raise UserError("several processes need one run folder", where="output_dir", found="not set",
                        fix="name it with --output_dir, or let --processes N start them")
    folder = Path(settings.output_dir)
    return run_folder(settings) if ranks.first() and not ranks.restarts() else folder


def _open(settings, folder, ref, spec, loader, note, began, score):
    """The session: torch is imported here, while the loader's process works."""
    from posttrain.train.objectives import make_objective
    from posttrain.train.session import open_session

    return open_session(settings, folder, ref, loader, spec, make_objective(settings), note, began, score)


def settle(settings: Settings, folder: Path) -> tuple[Settings, list[tuple[str, Any, str]]]:
    """Settings with the values that the program chooses filled in, and those choices with their reasons."""
    chosen = choices(settings)
    filled = {key: value for key, value, _ in chosen} | {"output_dir": str(folder)}
    return settings.model_copy(update=filled), chosen


def run_folder(settings: Settings) -> Path:
    """The run's folder: a fresh name, or output_dir, which must not hold anything unless it is resumed."""
    if settings.output_dir is None:
        return fresh_run(settings.objective)
    folder = Path(settings.output_dir)
    if settings.resume:
        return folder
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= BEGUN:
        shutil.rmtree(folder / "tokenizer", ignore_errors=True)
    elif folder.exists():
        is_run = (folder / "config.yaml").is_file()
        raise UserError("the output folder is in use", where=str(folder),
                        found="a run" if is_run else "a file" if folder.is_file() else "other files",
                        fix=f"go on with `posttrain {settings.objective} --output_dir {quote(str(folder))} --resume`, "
                            "or name another folder" if is_run else "name another folder")
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
    if ref is not None and ref.adapter and settings.adapts:
        from posttrain.model.adapters import continued_shape

        update |= continued_shape(settings, ref.adapter)
        note(f"lora_r = {update['lora_r']}, lora_alpha = {update['lora_alpha']:g}, lora_dropout = "
             f"{update['lora_dropout']:g}: those of the adapter that is continued")
    return settings.model_copy(update=update)


def _train(session, console: Console, note: Callable[[str], None], reporters: list[Reporter]) -> str:
    loop, settings = session.loop, session.loop.settings
    progress = Progress(loop.total, console, start=loop.state.step, every=settings.logging_steps)
    caught: list[int] = []

    def stop(number, frame) -> None:
        if caught:
            stop_now(number, frame)
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
    try:
        with handling(stop), _saying_how_to_go_on(session, note), progress:
            status = session.run()
    finally:
        for reporter in reporters:
            reporter.close()
    return status if status == "finished" else signal.Signals(caught[0]).name


@contextmanager
def _saying_how_to_go_on(session, note: Callable[[str], None]) -> Iterator[None]:
    """Where a signal ends what stands inside at once, the command that goes on from the last checkpoint."""
    try:
        yield
    except KeyboardInterrupt:
        folder = quote(str(session.record.folder))
        note(f"stopped at once; go on with: posttrain {session.loop.settings.objective} --output_dir {folder} --resume")
        raise
