"""What `--reward` names: a checker, a function in a Python file, or a reward model. Made here and passed down."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from posttrain.core.errors import UserError
from posttrain.eval.checkers import NAMED, Score, named_checker
from posttrain.eval.endpoint import is_endpoint

FORMS = "fn.py:score, " + ", ".join(NAMED) + ", or a reward model"


def reward_function(spec: str | None) -> Score | None:
    """The function behind `reward`, or None where it names a model: a run, a folder or a hub id."""
    if spec is None:
        raise UserError("nothing says what a good answer is", where="reward", expected=FORMS,
                        fix="set reward, for example --reward exact or --reward my_reward.py:score")
    if (checker := named_checker(spec)) is not None:
        return _apart(spec) if spec.startswith("regex:") else checker
    if spec == "tests" or spec.partition(":")[0] == "judge":
        return _grader(spec)
    file, colon, name = spec.rpartition(":")
    if file.endswith(".py") or (not colon and spec.endswith(".py")):
        return load_function(Path(file if colon else spec), name if colon else "score")
    if not Path(spec).exists() and "/" not in spec and (
            near := difflib.get_close_matches(spec.partition(":")[0], [n.partition(":")[0] for n in NAMED], n=1)):
        raise UserError("there is no such reward", where="reward", found=spec, expected=FORMS,
                        fix=f"did you mean {near[0]}?")
    from posttrain.train.rewards import reward_ref

    reward_ref(spec)  # what is no reward model is told before anything is loaded
    return None


def _apart(spec: str) -> Score:
    """The checker in a process of its own: one search may take years, and nothing in this process could end it."""
    from posttrain.train.reward_process import FunctionProcess

    return FunctionProcess(spec, module="posttrain.eval.checkers", name="named_checker", argument=spec)


def _grader(spec: str) -> Score:
    from posttrain.eval.graders import Judge, UnitTests
    from posttrain.eval.sandbox import check

    if spec == "tests":
        check()
        return UnitTests()
    if not is_endpoint(spec.removeprefix("judge:")):
        raise UserError("the reward does not say where its judge is", where="reward", found=spec,
                        expected="an OpenAI-compatible endpoint, as judge:http://localhost:8000/v1#qwen3",
                        fix="a reward model is named without judge:")
    judge = Judge(spec.removeprefix("judge:"))
    judge.endpoint.check()
    return judge


def reward_of(spec: str, settings) -> Callable[[list], list[float | str]]:
    """A reward for an evaluation: [(row, answer)] -> a score each, or the reason why one has none.

    A function is told what training tells it, but of the row its own answer alone.
    """
    if spec == "tests":
        raise UserError("unit tests are no figure of --reward", where="--reward", found=spec,
                        fix="posttrain eval MODEL --code FILE --allow_code_execution")
    if (function := reward_function(spec)) is None:
        return _by_model(spec, settings)

    def by_function(said: list) -> list[float | str]:
        from posttrain.eval.measure import asked, reference
        from posttrain.train.rollout import last_user_text
        from posttrain.train.scoring import ask_reward

        scores = ask_reward(function, spec, [last_user_text(replace(row, messages=asked(row))) for row, _ in said],
                            [text for _, text in said], [{"answer": reference(row)} for row, _ in said])
        return ["the judge's reply holds no clear rating" if math.isnan(score) else score for score in scores]

    return by_function


def _by_model(spec: str, settings) -> Callable[[list], list[float | str]]:
    def by_model(said: list) -> list[float | str]:
        from posttrain.eval.measure import asked
        from posttrain.eval.reward_model import RewardModel

        return RewardModel(spec, settings).talks([[*asked(row), {"role": "assistant", "content": text}]
                                                  for row, text in said])

    return by_model


def ask_rewards(found, rewards: dict[str, Callable[[list], list[float | str]]]) -> None:
    """Score every model's answers on a set of rows by every reward; a mean that would lack some has none."""
    from posttrain.eval.words import said

    if rewards and not any(row.kind == "conversation" for row in found.rows):
        raise UserError("a reward scores answers, and these rows ask for none", where="--reward", found=found.name,
                        fix="name rows with questions, or drop --reward")
    for spec, score in rewards.items():
        for made in found.measured:
            numbers = list(made.answers)
            scores = score([(found.rows[i], said(made.answers[i].text)) for i in numbers])
            lost = [s for s in scores if isinstance(s, str)]
            made.rewards[spec] = f"{len(lost):,} of {len(scores):,} answers have no score: {lost[0]}" if lost else \
                dict(zip(numbers, scores, strict=True))


def load_function(path: Path, name: str) -> Score:
    """The function `name` of a Python file, in a process of its own; the file's folder may hold what it imports."""
    from posttrain.train.reward_process import FunctionProcess

    if not path.is_file():
        raise UserError("the file of the reward function does not exist", where=f"reward: {path}:{name}",
                        fix="name a Python file that defines score(prompts, answers, rows)")
    function = FunctionProcess(f"{path}:{name}", file=str(path), name=name)
    if said := function.opened.get("failed"):
        raise UserError("the file of the reward function cannot be imported", where=str(path), found=said,
                        fix=f"mend it: python {path} shows the traceback")
    if (there := function.opened.get("there")) is not None:
        raise UserError("the file has no such reward function", where=str(path),
                        found=", ".join(there) or "no function", expected=f"a function {name}(prompts, answers, rows)",
                        fix=f"--reward {path}:{there[0]}" if there else "define it")
    return function
