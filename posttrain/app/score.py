"""`posttrain score`: what a reward model makes of rows, or of answers given on the command line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

from posttrain.app.arguments import Command
from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Row

CHUNK = 256  # rows rendered and scored at once


def main(command: Command) -> int:
    """A score per answer, rows in file order; for rows that compare answers, how often the better one scores higher."""
    from posttrain.eval.preferences import Margins, lines

    options, console = command.options, make_console(to_stderr=command.options["json"])
    scorer = _Rows(command)
    if options["prompt"] is not None:
        scores = scorer.answers(options["prompt"], _answers(command))
        if options["json"]:
            print_json({"prompt": options["prompt"], "scores": scores})
        else:
            console.print("\n".join(f"{s:.4f}" for s in scores), highlight=False)
        return 0
    if command.options["answer"] is not None:
        raise UserError("an answer is scored as the answer to something", where="command line", fix="add --prompt TEXT")
    found, lost = Margins(), 0
    for row, sequences, scores in scorer.rows(options["limit"]):
        line = {"origin": row.origin, "scores": scores} if sequences else {"origin": row.origin, "dropped": scores}
        lost += not sequences
        facts = [s.facts for s in sequences]
        if row.kind == "label":
            line["labels"] = [bool(f["label"]) for f in facts]
        for i, f in enumerate(facts):
            for j, g in enumerate(facts):
                if f.get("rank", 0) > g.get("rank", 0):
                    found.add(scores[i], scores[j], sequences[i].trained, sequences[j].trained)
        if options["json"]:
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
        else:
            shown = scores if isinstance(scores, str) else "  ".join(f"{s:8.4f}" for s in scores)
            console.print(f"{row.origin}  {shown}", markup=False, highlight=False, soft_wrap=True)
    for text in lines(found.to_json()) + ([f"not scored: {lost:,} rows"] if lost else []):
        console.print(text, markup=False, highlight=False)
    if options["json"] and found.totals[0]:
        sys.stdout.write(json.dumps(found.to_json()) + "\n")
    return 0


def _answers(command: Command) -> list[str]:
    answer = command.options["answer"]
    if answer is None:
        raise UserError("there is no answer to score", where="command line", fix="add --answer TEXT")
    if "data" in command.given:
        raise UserError("--prompt scores one answer, --data the rows of files", where="command line", fix="drop one")
    return [answer]


class _Rows:
    """A reward model with its renderer: rows and answers in, scores out."""

    def __init__(self, command: Command):
        from posttrain.eval.reward_model import RewardModel

        settings = self.settings = command.settings
        opened = RewardModel(command.words[0], settings)
        self.scorer, self.renderer = opened.scorer, opened.renderer
        self.renderer.max_length = min(settings.max_length, self.renderer.max_length)
        self.renderer.overlong = "cut"

    def answers(self, prompt: str, answers: list[str]) -> list[float]:
        """The score of each answer to a question; one of nothing is scored as PPO scores it."""
        return [self._answer([{"role": "user", "content": prompt}], answer) for answer in answers]

    def _answer(self, asked: list[dict[str, Any]], answer: str) -> float:
        from posttrain.train.rollout import lay

        row = Row("conversation", "command line", messages=[*asked, {"role": "assistant", "content": answer}])
        if not answer.strip():
            (score,) = self.scorer([lay(self.renderer.prompt(asked), self.renderer.stop_ids[:1], True, row.origin)])
            return round(score, 6)
        (made,) = self.renderer.render([row])
        if isinstance(made, RowError):
            raise made
        _, sequences, scores = self._score(row, made)
        if not sequences:
            raise UserError("the answer cannot be scored", where="command line", found=scores,
                            expected=f"at most {self.renderer.max_length} tokens with the prompt",
                            fix="shorten it, or raise max_length where the reward model reads longer texts")
        return scores[0]

    def rows(self, limit: int | None) -> Iterator[tuple[Row, list, Any]]:
        """(row, its sequences, their scores) in file order; (row, [], why) where nothing can be scored."""
        from posttrain.data.read import each_row, open_sources

        settings = self.settings
        sources = open_sources(settings.data, columns=settings.columns, objective=self._kind())
        rows = islice(each_row(sources, settings.bad_rows), limit)
        while chunk := list(islice(rows, CHUNK)):
            yield from self._chunk([row if isinstance(row, Row) else Row("conversation", row.where, dropped=row.message)
                                    for row in chunk])

    def _kind(self) -> str:
        """Whose rows these are: pairs, labels, or conversations."""
        from posttrain.data.read import open_sources

        for objective in ("reward", "kto"):
            try:
                for source in open_sources(self.settings.data, columns=self.settings.columns, objective=objective):
                    source.format  # noqa: B018 - detection is what fails
                return objective
            except RowError:
                raise
            except UserError:
                continue
        return "sft"

    def _chunk(self, rows: list[Row]) -> Iterator[tuple[Row, list, Any]]:
        good = [row for row in rows if row.dropped is None or row.kind != "conversation"]
        made = iter(self.renderer.render(good))
        for row in rows:
            yield self._score(row, next(made)) if row in good else (row, [], row.dropped)

    def _score(self, row: Row, made: Any) -> tuple[Row, list, Any]:
        from posttrain.data.gather import up_to_the_stop

        if isinstance(made, RowError):
            if self.settings.bad_rows == "error":
                raise made
            return row, [], made.message
        if not made.sequences:
            return row, [], made.dropped
        kept = made.sequences if row.answers else made.sequences[-1:]
        sequences = [up_to_the_stop(s) for s in kept]
        return row, sequences, [round(x, 6) for x in self.scorer(sequences)]
