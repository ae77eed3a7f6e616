"""One training run of any objective, from its settings to its model folder, and how signals end it."""

from __future__ import annotations

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

from posttrain.app.folder import check_free, check_settings_kept, check_unused, held
from posttrain.app.narrate import tell_data, tell_how_to_go_on, tell_next, tell_pairs, tell_result
from posttrain.app.particulars import keep_end, keep_start
from posttrain.app.progress import Progress
from posttrain.app.reporters import Reporter, need, open_reporters
from posttrain.app.resume import check_same_run
from posttrain.app.run import Run
from posttrain.app.runs import fresh_run
from posttrain.app.stopping import end_with_launcher, handling, stop_now
from posttrain.core import ranks
from posttrain.core.choices import choices
from posttrain.core.config import Settings
from posttrain.core.errors import SettingsError, UserError
from posttrain.core.extras import need_extra
from posttrain.core.status import is_finished, read_status
from posttrain.data.read import check_specs


class Interrupted(Exception):
    """The run was asked to stop and left a checkpoint; `code` is the exit status."""

    def __init__(self, folder: Path, code: int):
        super().__init__(f"{folder}: ended with exit status {code}")
        self.folder, self.code = folder, code


@handling(stop_now)
def launch(settings: Settings, console: Console, closing: bool = True) -> Run:
    """One whole run -> its Run; raises Interrupted where a signal ended it. `closing` prints the next commands."""
    began, notes = time.perf_counter(), []
    if ranks.told_before():
        raise SystemExit(2)
    end_with_launcher()
    check_specs(settings.data, settings.eval_data)
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
        check_settings_kept(Path(settings.output_dir))
        settings = check_same_run(settings, note)
        status = read_status(Path(settings.output_dir), note)
        if is_finished(Path(settings.output_dir)):
            note(f"this run is already finished (update {status.get('step')}): {settings.output_dir}")
            return Run(settings.output_dir)
        if status.get("status") == "finished":
            note("the model of this finished run is gone: it is made again")
    _need_libraries(settings)
    score = None
    if settings.is_sampled:
        from posttrain.app.rewards import reward_function

        score = reward_function(settings.reward)
    with held(settings) as place:
        folder = place.path
        settings, chosen = settle(settings, folder)
        for key, value, why in chosen:
            note(f"{key} = {value}: {why}")
        from posttrain.data.loader import Loader

        with Loader(settings) as loader, ranks.together():  # it indexes and renders in its own process from here on
            ranks.begin(settings.device)
            with ranks.one_after_the_first():
                settings = _keep_architecture(settings, folder)
                ref, spec = _with_errors_of(loader, partial(_tokenizer, settings, folder, note))
            settings = _settle_model(settings, ref, spec, note)
            loader.tokenizer(spec)
            session = _open(settings, folder, ref, spec, loader, note, began, score)
            reporters = open_reporters(session.loop.settings, folder) if ranks.first() else []
            place.begun = True
            tell_data(session, note, console)
            keep_start(session, settings, notes)
            judged = _to_the_end(session, console, note, reporters)
            ranks.wait()
    ranks.end()
    run = Run(folder)
    if not ranks.first():
        return run
    tell_result(run, session, note)
    if judged is not None:
        tell_pairs(judged, note)
    if closing:
        tell_next(console, run, settings, session.loop.loader.opened.sources)
    return run


def _to_the_end(session, console: Console, note: Callable[[str], None], reporters: list[Reporter]):
    """Train, write the model and close the record -> how a reward model judges the held-out pairs, else None."""
    folder = session.record.folder
    status = _train(session, console, note, reporters)
    if status != "finished":
        keep_end(session)
        raise Interrupted(folder, tell_how_to_go_on(session, status, folder, note))
    from posttrain.app.card import model_card

    with _saying_how_to_go_on(session, note):
        session.export(model_card(session.loop.settings, session))
        return session.finish(partial(keep_end, session, judging=session.loop.settings.objective == "reward"))


def _need_libraries(settings: Settings) -> None:
    """Stop before anything is begun where a library of these settings is missing."""
    for name in settings.report_to:
        need(name)
    if settings.method == "qlora":
        need_extra("bitsandbytes", "qlora", where="method", found="qlora", instead="set method: lora")


def _launch_processes(settings: Settings, console: Console) -> Run:
    """The run in processes of its own, of which the first one prints."""
    from posttrain.app.processes import run_processes

    folder, fresh = Path(settings.output_dir or ""), settings.output_dir is None
    if fresh:
        folder = fresh_run(settings.objective)
    elif settings.resume:
        check_unused(folder)
    else:
        check_free(settings)
    try:
        code = run_processes(settings, folder, console)
    finally:
        if fresh and not any(folder.iterdir()):
            folder.rmdir()
    if code:
        raise Interrupted(folder, code)
    return Run(folder)


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
    copy = folder / "architecture.yaml"
    if Path(settings.architecture).resolve() != copy.resolve():
        shutil.copyfile(settings.architecture, copy)
    return settings.model_copy(update={"architecture": str(copy)})


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
