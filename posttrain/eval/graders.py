"""Rewards that ask something outside of this process: unit tests in the sandbox, a judge at an endpoint."""

from __future__ import annotations

from collections.abc import Callable

from .checkers import Rows
from .endpoint import Endpoint
from .judge import JUDGE_TOKENS, Judgement, Talk, questions, settle
from .passk import problem_of
from .sandbox import Trial, Verdict, run_all


class UnitTests:
    """1 where the program that an answer holds passes every test of its row, in the sandbox; else 0.

    Rows are those of `posttrain eval --code`, and so is what counts as a program. Each trial has the limits of time
    that it has there, so a call may take as long as they need.
    """

    patience: float | None = None

    def __init__(self, run: Callable[[list[Trial]], list[Verdict]] = run_all):
        self.run = run

    def __call__(self, prompts: list[str], answers: list[str], rows: Rows) -> list[float]:
        problems = [problem_of(row, "reward: tests") for row in rows]
        trials = [p.trial(p.program(answer)) for p, answer in zip(problems, answers, strict=True)]
        once = list(dict.fromkeys(trials))
        verdicts = dict(zip(once, self.run(once), strict=True))
        return [float(verdicts[trial].passed) for trial in trials]


class Judge:
    """The rating, 1 to 10, that a model at an OpenAI-compatible endpoint gives each answer to what was asked.

    It is asked as `posttrain judge` asks for a rating. A reply that holds no clear one is None: no verdict, never a
    guess (test_graders.py::test_a_reply_without_a_rating_is_no_verdict).
    """

    patience: float | None = None
    abstains = True

    def __init__(self, name: str):
        self.endpoint = Endpoint(name)

    def __call__(self, prompts: list[str], answers: list[str], rows: Rows) -> list[float | None]:
        asked = self.asked(prompts, answers)
        replies = self.endpoint.answers([j.messages for j in asked], max_new_tokens=JUDGE_TOKENS)
        for judgement, reply in zip(asked, replies, strict=True):
            settle(judgement, reply.text)
        return [j.verdict for j in asked]

    def asked(self, prompts: list[str], answers: list[str]) -> list[Judgement]:
        """What the judge is asked, answer by answer."""
        talks = [Talk(str(i), "", [prompt], answers=[[answer]])
                 for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))]
        return questions(talks, 1)

