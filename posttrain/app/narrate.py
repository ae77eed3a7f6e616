"""What a run says of its data before the first update, and of its result after the last."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console

from posttrain.app.run import Run
from posttrain.app.screen import next_commands, print_example
from posttrain.core.config import Settings
from posttrain.data.read import parse_spec


def tell_data(session, note: Callable[[str], None], console: Console) -> None:
    loader, head = session.loop.loader, session.head
    for source in loader.opened.sources:
        share = f", {source['share']:.0%} of every update" if source["share"] is not None else ""
        held = f", {source['held_out']:,} held out" if source["held_out"] else ""
        unread = f"; not read: {', '.join(source['not_read'])}" if source["not_read"] else ""
        note(f"data: {source['spec']}: {source['rows']:,} rows, format {source['format']}{share}{held}{unread}")
    switch = "the template's default" if head.thinking is None else str(head.thinking).lower()
    note(f"enable_thinking = {switch}: {head.why}")
    kept, read = head.ledger.rows_trained, head.ledger.rows_read
    dropped = ", ".join(f"{n} {reason}" for reason, n in sorted(head.ledger.rows_dropped.items()))
    note(f"first {read:,} rows: {kept:,} trained" + (f", dropped: {dropped}" if dropped else "")
         + f"; {head.trained_share:.1%} of their tokens are trained")
    if head.example is not None:
        print_example(console, head.example, session.spec)
    each = loader.updates_per_epoch * session.loop.objective.updates
    note(f"{session.loop.total:,} updates, {each:,} per epoch of {loader.opened.rows_per_epoch:,} rows")


def tell_how_to_go_on(session, name: str, folder: Path, note: Callable[[str], None]) -> int:
    note(f"stopped by {name} after update {session.loop.state.step} of {session.loop.total}; "
         f"checkpoint {folder / 'checkpoints' / str(session.loop.state.step)}")
    note(f"go on with: posttrain {session.loop.settings.objective} --output_dir {quote(str(folder))} --resume")
    return 128 + signal.Signals[name]


def tell_result(run: Run, session, note: Callable[[str], None]) -> None:
    rows, tokens = run.ledger["rows"], run.ledger["tokens"]
    dropped = sum(rows["dropped"].values())
    note(f"ledger: rows read {rows['read']:,} = trained {rows['trained']:,} + dropped {dropped:,}"
         + (f" ({', '.join(f'{n} {r}' for r, n in rows['dropped'].items())}; see rejected.jsonl)" if dropped else "")
         + f"; {rows['cut']:,} of the trained were cut")
    note(f"        tokens rendered {tokens['rendered']:,} = trained {tokens['trained']:,} + masked "
         f"{tokens['masked']:,} + cut {tokens['cut']:,} + dropped {tokens['dropped']:,}")
    last, exported = run.status["step"], run.status["exported_step"]
    if exported != last:
        note(f"early stopping: the model is that of update {exported}, the best of the validations; training ended at "
             f"update {last} of {session.loop.loader.total}")
    if (before := run.status.get("eval_loss_before")) is not None:
        after = session.loop.state.eval_loss
        change = f" ({(after - before) / before:+.1%})" if before > 0 else ""
        note(f"held-out loss: {before:.4f} before, {after:.4f} after{change}")
    note(f"model: {run.model_path}")


def tell_pairs(report: dict[str, Any], note: Callable[[str], None]) -> None:
    """How a trained reward model judges the held-out pairs, in lines."""
    from posttrain.eval.preferences import lines

    for line in lines(report) or ["held-out pairs: none; set eval_split or eval_data to see how often the better "
                                  "answer scores higher"]:
        note(line)


def tell_next(console: Console, run: Run, settings: Settings, sources: list[dict[str, Any]]) -> None:
    """Commands that can be copied as they stand; the questions to compare on are those of the data."""
    folder, commands = quote(str(run.path)), []
    if settings.objective == "reward":
        data = quote(parse_spec(sources[0]["spec"]).path)
        next_commands(console, [(f"posttrain score {folder} {data} --limit 20", "what it makes of answers"),
                                (f"posttrain data show {folder}", "every token of the rows")])
        return
    commands.append((f"posttrain chat {folder}", "talk to it"))
    asked = next((s["spec"] for s in sources if s["format"] != "text"), None)
    if not settings.architecture and asked:
        questions = quote(parse_spec(asked).path)
        commands.append((f"posttrain compare {quote(settings.model)} {folder} --questions {questions} --limit 5",
                         "answers side by side"))
    if settings.adapts:
        commands.append((f"posttrain merge {folder}", "one plain folder, adapter and base in one"))
    commands.append((f"posttrain data show {folder}", "every trained token"))
    next_commands(console, commands)
