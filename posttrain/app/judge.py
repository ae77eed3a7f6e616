"""`posttrain judge MODEL… --questions FILE --judge URL|RUN`: MT-Bench, or any talks of its form, rated by a model."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.app.runs import fresh_run
from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import UserError

RATED = "from 1 to 10"
SCORED = "raw scores of a reward model: they compare with each other only"


def main(command) -> int:
    """Ask the models, ask the judge, count; everything asked and said lies in the folder."""
    options, settings = command.options, command.settings
    _check(command)
    from posttrain.app.assistant import check_models, how_to_answer
    from posttrain.eval.judge import converse, duel, duel_by_score, ratings, read_talks

    how = how_to_answer(command)
    talks = read_talks(Path(options["questions"]), options["reference"] and Path(options["reference"]),
                       options["limit"])
    check_models([*command.words, options["judge"]])
    by_words, judge, name_of_judge = _judge(options["judge"], settings)
    console = make_console(to_stderr=options["json"])

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for name in command.words:
        say(f"asking {name}: {len(talks)} talks of {sum(len(t.turns) for t in talks)} turns …")
        converse(talks, _asker(name, command, how))
        gc.collect()
    asked = judge(talks, len(command.words), say)
    contest = duel if by_words else duel_by_score
    result: dict[str, Any] = {
        "judge": name_of_judge, "scale": RATED if by_words else SCORED,
        "questions": options["questions"], "talks": len(talks), "version": __version__,
        "models": [{"model": name} | ratings(asked, talks, m, settings.seed) for m, name in enumerate(command.words)],
        "pair": contest(asked) if len(command.words) == 2 else None}
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
    from posttrain.eval.endpoint import is_endpoint

    options = command.options
    for name, expected in (("questions", "a file such as MT-Bench's question.jsonl"),
                           ("judge", "an OpenAI-compatible endpoint, as http://localhost:8000/v1#qwen3, or a reward "
                                     "model")):
        if not options[name]:
            raise UserError(f"the judge needs --{name}", where="command line", expected=expected,
                            fix=f"posttrain judge {' '.join(command.words)} --questions FILE --judge URL#MODEL")
    if options["reference"] and not is_endpoint(options["judge"]):
        raise UserError("a reward model reads no good answers", where="--reference",
                        found=f"--judge {options['judge']}",
                        fix="drop --reference, or let a model at an endpoint judge")
    if len(command.words) > 2:
        raise UserError("a judge compares at most two models", where="command line", found=", ".join(command.words),
                        fix="name one, to be rated, or two, to be rated and compared")
    folder = command.settings.output_dir
    if folder and Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise UserError("the output folder is in use", where=folder, fix="name another folder")


def _judge(name: str, settings) -> tuple[bool, Callable[..., list], str]:
    """(whether it judges in words, (talks, models, say) -> Judgements with their verdicts, what it is called)."""
    from posttrain.eval.endpoint import Endpoint, is_endpoint
    from posttrain.eval.judge import JUDGE_TOKENS, questions, settle, take, to_score

    def in_words(talks, models, say):
        asked = questions(talks, models)
        say(f"asking the judge {endpoint.describe()}: {len(asked)} times …")
        for j, reply in zip(asked, endpoint.answers([j.messages for j in asked], max_new_tokens=JUDGE_TOKENS),
                            strict=True):
            settle(j, reply.text)
        return asked

    def by_score(talks, models, say):
        from posttrain.eval.reward_model import RewardModel

        asked = to_score(talks, models)
        say(f"scoring {len(asked)} answers with the reward model {name} …")
        for j, score in zip(asked, RewardModel(name, settings).talks([j.messages for j in asked]), strict=True):
            take(j, score)
        return asked

    if is_endpoint(name):
        endpoint = Endpoint(name)
        return True, in_words, endpoint.describe()
    from posttrain.model.resolve import gives_scores, resolve_model

    ref = resolve_model(name)
    if not ref.is_hub and not gives_scores(ref):  # told before any model is asked
        raise UserError("the judge gives words, not scores", where=f"--judge {name}",
                        expected="a reward model, or a model at an OpenAI-compatible endpoint",
                        fix=f"train one with `posttrain reward`, or serve {name} and name URL#MODEL")
    return False, by_score, f"{name}, a reward model"


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
    lines, by_words = [], result["scale"] == RATED
    for model in result["models"]:
        turns = ", ".join(f"turn {t} {_rating(r)}" for t, r in model["turns"].items())
        lines.append(f"{model['model']}: rated {_rating(model['rating'])} of 10 ({turns}); {model['unparsable']} of "
                     f"{model['asked']} replies held no clear rating" if by_words else
                     f"{model['model']}: mean score {_rating(model['rating'])} ({turns}); {model['unparsable']} of "
                     f"{model['asked']} answers could not be scored")
    if pair := result["pair"]:
        one, two = (m["model"] for m in result["models"])
        lines.append(f"{one} wins {pair['first']}, {two} wins {pair['second']}, ties {pair['ties']} of {pair['pairs']} "
                     f"pairs, " + ("each asked in both orders" if by_words else "by the higher score")
                     + f"; {pair['unparsable']} " + ("unparsable" if by_words else "without a score"))
        if pair["second_wins"] is not None:
            lines.append(f"{two} wins {pair['second_wins']:.0%} [{pair['low']:.0%}, {pair['high']:.0%}] without ties, "
                         f"sign test p = {pair['p']:.3g}"
                         + (f"; the orders agree on {pair['agree']:.0%}" if by_words else ""))
    return lines


def _rating(found: dict[str, float | None]) -> str:
    return "none" if found["value"] is None else f"{found['value']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"
