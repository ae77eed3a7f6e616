"""`posttrain compare BASE TUNED --questions FILE`: two models, the same questions, side by side."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import RowError, UserError

QUESTION_COLUMNS = ("prompt", "question", "instruction", "query", "turns")


def main(command) -> int:
    """Answers of both models, as a table or as JSON."""
    options = command.options
    if not options["questions"]:
        raise UserError("there are no questions to ask", where="--questions", expected="a .txt, .jsonl or .json file",
                        fix=f"posttrain compare {' '.join(command.words)} --questions questions.txt")
    from posttrain.app.assistant import how_to_answer

    how = how_to_answer(command)
    questions = read_prompts(options["questions"], options["limit"])
    console = make_console(to_stderr=options["json"])
    columns = [answers_of(name, questions, command, console, how) for name in command.words]
    if options["json"]:
        print_json({"base": command.words[0], "tuned": command.words[1], "answers": [
            {"prompt": q[-1]["content"], "base": as_json(b), "tuned": as_json(t)}
            for q, b, t in zip(questions, *columns, strict=True)]})
        return 0
    console.print(side_by_side([q[-1]["content"] for q in questions],
                               dict(zip(("base", "tuned"), columns, strict=True)), tuple(command.words)))
    for name, answers in zip(command.words, columns, strict=True):
        stopped = sum(a.stopped for a in answers)
        console.print(f"{name}: {stopped} of {len(answers)} answers stopped by themselves", markup=False)
    return 0


def answers_of(name: str, questions: list[list[dict[str, Any]]], command, console, how: dict) -> list[Any]:
    """All answers of one model; it is let go of before the next one is loaded."""
    from posttrain.app.assistant import load

    console.print(f"asking {name} …", style="dim", markup=False)
    answers = load(name, command.settings).answers(questions, system=command.options["system"], **how)
    gc.collect()
    return answers


def as_json(answer) -> dict[str, Any]:
    return {"answer": answer.text, "stopped": answer.stopped, "tokens": len(answer.ids)}


def side_by_side(prompts: list[str], columns: dict[str, list[Any]], names: tuple[str, ...]) -> Table:
    """One row per question, one column per model; an answer that did not stop ends with a mark."""
    table = Table(show_lines=True, expand=True)
    table.add_column("question", ratio=3)
    for label, name in zip(columns, names, strict=True):
        table.add_column(Text(label if label == name else f"{label}: {name}"), ratio=4)
    for prompt, *answers in zip(prompts, *columns.values(), strict=True):
        table.add_row(Text(prompt), *(shown(a) for a in answers))
    return table


def shown(answer, most: int = 600) -> Text:
    """An answer for a table cell: stripped, bounded, and marked where it never stopped."""
    text = answer.text.strip()
    cell = Text(text if len(text) <= most else text[:most] + " …")
    if not answer.stopped:
        cell.append(" [never stopped]", style="red")
    return cell


def read_prompts(file: str, limit: int | None = None) -> list[list[dict[str, Any]]]:
    """Conversations to be answered from a .txt (a question per line) or from rows with a prompt column or messages."""
    path = Path(file)
    if path.suffix == ".txt":
        if not path.is_file():
            raise UserError("the file of questions does not exist", where=file, fix="check the path")
        try:
            lines = path.read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as e:
            raise UserError("the file of questions is not UTF-8 text", where=file, found=str(e),
                            fix="convert it to UTF-8") from None
        found = [[{"role": "user", "content": line.strip()}] for line in lines if line.strip()]
    else:
        from posttrain.data.read import open_source

        source = open_source(file)
        try:
            source.format  # noqa: B018 - detection is what may fail
        except UserError:  # pairs ask questions too; whatever else it is, its columns may do
            source = open_source(file, objective="dpo")
        count = len(source) if limit is None else min(limit, len(source))
        found = [_prompt_of(source, i) for i in range(count)]
    if not found:
        raise UserError("the file holds no questions", where=file, expected="at least one line")
    return found[:limit]


def _prompt_of(source, i: int) -> list[dict[str, Any]]:
    """What row i asks: its messages before the last answer where the row has a known format, else its prompt column."""
    from posttrain.data.messages import read_messages

    raw = source[i]
    try:
        messages = source.row(i).messages
    except UserError:  # no known format, or no answer: a question alone is enough here
        messages = read_messages(raw.values["messages"], raw.origin) if raw.values.get("messages") else []
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if any(m["role"] == "user" for m in messages):
        return messages
    for name in QUESTION_COLUMNS:
        value = raw.values.get(name)
        value = value[0] if isinstance(value, list) and value else value
        if isinstance(value, str) and value.strip():
            return [{"role": "user", "content": value}]
    raise RowError("a row holds no question", where=raw.origin, found=", ".join(raw.values),
                   expected=" or ".join((*QUESTION_COLUMNS, "messages")))
