"""Chat templates: which one, compiled by transformers' own machinery, never patched, with a frozen date."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any

from ..core.errors import RowError, UserError

FOLDER = Path(__file__).parent / "templates"
BUILTINS = ("chatml", "llama2", "alpaca", "plain")

# The thinking switch under the names templates read it by.
SWITCHES = ("enable_thinking", "thinking", "open_thinking", "use_thinking")
BOS_LINE = "{{- bos_token }}\n"


def builtin_template(name: str, *, adds_bos: bool) -> str:
    """Text of a built-in template; its BOS line stays only where the tokenizer itself puts a BOS."""
    text = (FOLDER / f"{name}.jinja").read_text("utf-8")
    return text if adds_bos else text.removeprefix(BOS_LINE)


def choose_template(setting: str, own: Any, *, adds_bos: bool) -> tuple[str, str, str]:
    """`chat_template` setting and the tokenizer's own template -> (name, text, why)."""
    if setting == "auto":
        if isinstance(own, dict):
            if "default" not in own:
                raise UserError("the tokenizer has several chat templates and none is named `default`",
                                found=", ".join(sorted(own)), fix="name a template file with chat_template")
            rest = ", ".join(sorted(set(own) - {"default"}))
            return "own", own["default"], f"the tokenizer's own `default` template; its others ({rest}) are not used"
        if own:
            return "own", own, "the tokenizer's own template, unpatched"
        return "plain", builtin_template("plain", adds_bos=adds_bos), (
            "the tokenizer has no template; `plain` needs no new tokens")
    if setting in BUILTINS:
        why = "chosen by chat_template" + ("; the tokenizer's own template is replaced" if own else "")
        return setting, builtin_template(setting, adds_bos=adds_bos), why
    path = Path(setting)
    if not path.is_file():
        raise UserError("the chat template cannot be found", where="chat_template", found=repr(setting),
                        expected="auto, " + ", ".join(BUILTINS) + ", or an existing .jinja file")
    try:
        return path.stem, path.read_text("utf-8"), f"the file {setting}, chosen by chat_template"
    except UnicodeDecodeError as e:
        raise UserError("the chat template is not UTF-8 text", where=str(path), found=str(e)) from None


class Template:
    """A compiled chat template: messages -> text, the same text at any hour.

    `names` are the special tokens a template may write (`bos_token`, …); `date` is what `strftime_now` tells it.
    Equal to transformers' `apply_chat_template(tokenize=False)` (test_render.py::test_renders_as_transformers).
    """

    def __init__(self, text: str, names: dict[str, str], date: str):
        import jinja2.meta
        from transformers.utils.chat_template_utils import _compile_jinja_template

        self.text, self.names = text, names
        self._day = datetime.datetime.fromisoformat(date)
        self._refusals = (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError)
        try:
            self._compiled = _compile_jinja_template(text)
        except jinja2.TemplateSyntaxError as e:
            raise UserError("the chat template is not valid Jinja", where=f"chat template, line {e.lineno}",
                            found=str(e.message)) from None
        environment = self._compiled.environment
        self.switches = sorted(jinja2.meta.find_undeclared_variables(environment.parse(text)) & set(SWITCHES))
        self.has_marks = re.search(r"\{%-?\s*generation\s*-?%\}", text) is not None
        self.prints_date = "strftime_now" in text

    def render(self, messages: list[dict[str, Any]], tools: list | None = None, *, prompt: bool = False,
               thinking: bool | None = None) -> str:
        """The conversation as text; `prompt` adds the generation prompt; a refusal of the template is a RowError."""
        try:
            return self._compiled.render(**self._variables(messages, tools, prompt, thinking))
        except self._refusals as e:
            raise self._refused(e) from None

    def render_marked(self, messages, tools=None, *, thinking=None) -> tuple[str, list[tuple[int, int]]]:
        """The conversation and the stretches of text inside the template's own {% generation %} marks."""
        blocks: list[str] = []
        marks: list[tuple[int, int]] = []
        environment = self._compiled.environment
        try:
            with environment.activate_tracker(blocks, marks):
                for block in self._compiled.generate(**self._variables(messages, tools, False, thinking)):
                    blocks.append(block)
        except self._refusals as e:
            raise self._refused(e) from None
        return "".join(blocks), marks

    def _variables(self, messages, tools, prompt, thinking) -> dict[str, Any]:
        switch = {} if thinking is None else dict.fromkeys(self.switches, thinking)
        return {**self.names, **switch, "messages": messages, "tools": tools, "documents": None,
                "add_generation_prompt": prompt, "strftime_now": self._day.strftime}

    def _refused(self, error: Exception) -> RowError:
        return RowError("the chat template refuses this conversation", found=str(error) or type(error).__name__,
                        fix="mend the row, or choose another chat_template")
