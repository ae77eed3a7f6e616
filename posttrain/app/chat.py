"""`posttrain chat MODEL`: a conversation in the terminal, or one answer with --prompt."""

from __future__ import annotations

import sys
from contextlib import nullcontext

from rich.console import Console

from posttrain.app.screen import make_console, print_json
from posttrain.core.errors import UserError

COMMANDS = (("/reset", "forget the conversation"), ("/system TEXT", "set the system prompt and start anew"),
            ("/help", "show this"), ("/exit", "leave (so does Ctrl-D)"))


def main(command) -> int:
    """Load the model, then answer once or talk."""
    options = command.options
    if options["json"] and options["prompt"] is None:
        raise UserError("--json needs one question", where="--json", fix="add --prompt TEXT")
    from posttrain.app.assistant import how_to_answer, load

    how = how_to_answer(command)
    console = make_console(to_stderr=options["json"] or options["prompt"] is not None)
    with console.status(f"loading {command.words[0]} …") if console.is_terminal else nullcontext():
        assistant = load(command.words[0], command.settings)
    if options["prompt"] is None:
        return talk(assistant, console, options["system"], how)
    messages = _opening(options["system"]) + [{"role": "user", "content": options["prompt"]}]
    if options["json"]:
        answer = assistant.answers([messages], **how)[0]
        print_json({"prompt": options["prompt"], "answer": answer.text, "stopped": answer.stopped,
                    "tokens": len(answer.ids)})
        return 0
    answer = assistant.answer(messages, on_text=_write, **how)
    _write("\n")
    if not answer.stopped:
        console.print(_cut_text(how), style="dim")
    return 0


def talk(assistant, console: Console, system: str | None, how: dict) -> int:
    """The loop of a conversation: read a line, stream the answer, until /exit or the end of the input."""
    interactive = sys.stdin.isatty()
    if interactive:
        import readline  # noqa: F401 - gives input() history and editing

        console.print(f"[bold]{assistant.name}[/bold]  {assistant.describe()}\n/help lists the commands")
    messages = _opening(system)
    while True:
        try:
            line = input("\nyou> " if interactive else "").strip()
        except EOFError:
            _write("\n" if interactive else "")
            break
        except KeyboardInterrupt:
            console.print("\n(/exit or Ctrl-D leaves)", style="dim")
            continue
        except UnicodeDecodeError as e:
            raise UserError("the input is not UTF-8 text", where="standard input", found=str(e),
                            fix="convert it to UTF-8") from None
        if not line:
            continue
        if line.startswith("/"):
            word, _, rest = line.partition(" ")
            if word in ("/exit", "/quit"):
                break
            messages = _obey(word, rest.strip(), messages, console)
            continue
        asked = messages + [{"role": "user", "content": line}]
        try:
            messages = _reply(assistant, asked, console, how, "\nassistant> " if interactive else "")
        except UserError as e:  # what the template cannot render: the conversation goes on without it
            if not interactive:
                raise
            console.print(str(e), markup=False)
    return 0


def _reply(assistant, messages: list[dict], console: Console, how: dict, label: str) -> list[dict]:
    """Stream one answer; Ctrl-C ends the answer, not the conversation."""
    said: list[str] = []

    def write(text: str) -> None:
        said.append(text)
        _write(text)

    _write(label)
    try:
        answer = assistant.answer(messages, on_text=write, **how)
    except KeyboardInterrupt:
        console.print("\n(interrupted)", style="dim")
        if not said:  # a question without an answer is no turn
            return messages[:-1]
        return messages + [{"role": "assistant", "content": "".join(said)}]
    _write("\n")
    if not answer.stopped:
        console.print(_cut_text(how), style="dim")
    return messages + [{"role": "assistant", "content": answer.text}]


def _obey(word: str, rest: str, messages: list[dict], console: Console) -> list[dict]:
    if word == "/reset":
        console.print("(a new conversation)", style="dim")
        return [m for m in messages if m["role"] == "system"]
    if word == "/system":
        console.print("(a new conversation)" if rest else "(a new conversation without system prompt)", style="dim")
        return _opening(rest or None)
    if word != "/help":
        console.print(f"there is no command {word}", markup=False)
    for name, what in COMMANDS:
        console.print(f"  {name:<14} {what}", markup=False)
    return messages


def _opening(system: str | None) -> list[dict]:
    return [{"role": "system", "content": system}] if system else []


def _cut_text(how: dict) -> str:
    return f"(cut after {how['max_new_tokens']} tokens: raise --max_new_tokens)"


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()

