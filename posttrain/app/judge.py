"""`posttrain judge MODEL… --questions FILE --judge URL`: MT-Bench, or any talks of its form, rated by a model."""

from __future__ import annotations

import gc
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.app.runs import fresh_run
from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import UserError


def main(command) -> int:
    """Ask the models, ask the judge, count; everything asked and said lies in the folder."""
    options, settings = command.options, command.settings
    _check(command)
    from posttrain.app.assistant import how_to_answer
    from posttrain.eval.endpoint import Endpoint
    from posttrain.eval.judge import JUDGE_TOKENS, converse, duel, questions, ratings, read_talks, settle

    how = how_to_answer(command)
    talks = read_talks(Path(options["questions"]), options["reference"] and Path(options["reference"]),
                       options["limit"])
    judge = Endpoint(options["judge"])
    console = make_console(to_stderr=options["json"])

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for name in command.words:
        say(f"asking {name}: {len(talks)} talks of {sum(len(t.turns) for t in talks)} turns …")
        converse(talks, _asker(name, command, how))
        gc.collect()
    asked = questions(talks, len(command.words))
    say(f"asking the judge {judge.describe()}: {len(asked)} times …")
    replies = judge.answers([j.messages for j in asked], max_new_tokens=JUDGE_TOKENS)
    for j, reply in zip(asked, replies, strict=True):
        settle(j, reply.text)
    result: dict[str, Any] = {
        "judge": judge.describe(), "questions": options["questions"], "talks": len(talks), "version": __version__,
        "models": [{"model": name} | ratings(asked, talks, m, settings.seed) for m, name in enumerate(command.words)],
        "pair": duel(asked) if len(command.words) == 2 else None}
    folder = Path(settings.output_dir) if settings.output_dir else fresh_run("judge")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "judge.json").write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", "utf-8")
    for name, rows in (("talks.jsonl", talks), ("judgements.jsonl", asked)):
        (folder / name).write_text("".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in rows), "utf-8")
    for line in told(result):
        say(line)
    say(f"written: {folder / 'judge.json'}, talks.jsonl, judgements.jsonl")
    if options["json"]:
        print_json(result)
    return 0


def _check(command) -> None:
    options = command.options
    for name, expected in (("questions", "a file such as MT-Bench's question.jsonl"),
                           ("judge", "an OpenAI-compatible endpoint, as http://localhost:8000/v1#qwen3")):
        if not options[name]:
            raise UserError(f"the judge needs --{name}", where="command line", expected=expected,
                            fix=f"posttrain judge {' '.join(command.words)} --questions FILE --judge URL#MODEL")
    if len(command.words) > 2:
        raise UserError("a judge compares at most two models", where="command line", found=", ".join(command.words),
                        fix="name one, to be rated, or two, to be rated and compared")
    folder = command.settings.output_dir
    if folder and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise UserError("the output folder is in use", where=folder, fix="name another folder")


def _asker(name: str, command, how: dict[str, Any]):
    """Conversations -> texts, by a loaded model or an endpoint."""
    from posttrain.eval.endpoint import Endpoint, is_endpoint

    system = command.options["system"]
    opening = [{"role": "system", "content": system}] if system else []
    if is_endpoint(name):
        endpoint = Endpoint(name)
        return lambda talks: [a.text for a in endpoint.answers([opening + t for t in talks], **how)]
    from posttrain.app.assistant import load

    assistant = load(name, command.settings)
    return lambda talks: [a.text for a in assistant.answers(talks, system=system, **how)]


def told(result: dict[str, Any]) -> list[str]:
    """The outcome as lines."""
    lines = []
    for model in result["models"]:
        turns = ", ".join(f"turn {t} {_rating(r)}" for t, r in model["turns"].items())
        lines.append(f"{model['model']}: rated {_rating(model['rating'])} of 10 ({turns}); {model['unparsable']} of "
                     f"{model['asked']} replies held no clear rating")
    if pair := result["pair"]:
        one, two = (m["model"] for m in result["models"])
        lines.append(f"{one} wins {pair['first']}, {two} wins {pair['second']}, ties {pair['ties']} of {pair['pairs']} "
                     f"pairs, each asked in both orders; {pair['unparsable']} unparsable")
        if pair["second_wins"] is not None:
            lines.append(f"{two} wins {pair['second_wins']:.0%} [{pair['low']:.0%}, {pair['high']:.0%}] without ties, "
                         f"sign test p = {pair['p']:.3g}; the orders agree on {pair['agree']:.0%}")
    return lines


def _rating(found: dict[str, float | None]) -> str:
    return "none" if found["value"] is None else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
