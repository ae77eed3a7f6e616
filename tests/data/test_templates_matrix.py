"""Every chat template of the trl wheel x every conversation: each case proved and trained, or listed here by name.

The templates are no part of the repository: `sh tests/fetch_templates.sh` lays them into .venv, or an installed trl
has them.
"""

import importlib.util
import re
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conversations import CONVERSATIONS, TOOLS, WITH_TOOLS
from small_tokenizer import tokenizer_for
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import CONTENT, SCAFFOLD, STOP, Row
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import make_spec

ROOT = Path(__file__).resolve().parents[2]


def folder() -> Path | None:
    fetched = ROOT / ".venv" / "chat_templates-1.16.0"
    if fetched.is_dir():
        return fetched
    found = importlib.util.find_spec("trl")
    inside = Path(found.origin).parent / "chat_templates" if found and found.origin else None
    return inside if inside and inside.is_dir() else None


TEMPLATES = sorted(folder().glob("*.jinja")) if folder() else []
needs_templates = pytest.mark.skipif(not TEMPLATES, reason="the trl wheel's templates are absent: run "
                                                           "`sh tests/fetch_templates.sh`, or install trl")
NAMES = [t.stem for t in TEMPLATES]

# What the templates themselves cannot render. Nothing else may fail (test_every_case_is_proved_or_listed).
CALLS = ("tools", "tools, system, two rounds", "tool call last")
NO_TOOL_CALLS = {"cohere", "cohere2", "gemma", "gemma3", "idefics3", "lfm2", "llama3", "llava_next", "phi3", "phi3_5",
                 "qwen2_5_vl", "smolvlm"}
NO_SYSTEM = {"gemma"}
# Their second round of calls is written without the assistant's header, which the generation prompt does write.
ONE_ROUND = {"deepseek_r1_distill", "deepseekv3"}


def expected(template: str, name: str) -> str:
    base = template.removesuffix("_training")
    if base in NO_SYSTEM and CONVERSATIONS[name][0]["role"] == "system":
        return "the chat template refuses this conversation"
    if base in NO_TOOL_CALLS and name in CALLS:
        return "the chat template does not render the tool calls of an answer"
    if base in ONE_ROUND and name == "tools, system, two rounds":
        return "the turn does not begin where its generation prompt ends"
    return "proved"


@cache
def renderer(template: str) -> Renderer:
    text = (folder() / f"{template}.jinja").read_text("utf-8")
    return Renderer(make_spec(tokenizer_for(text)), max_length=100_000)


def tools_of(name: str):
    return TOOLS if name in WITH_TOOLS else None


@cache
def outcome(template: str, name: str):
    """Rendered, or the message of what refused it."""
    row = Row("conversation", f"{name}:1", 0, CONVERSATIONS[name], tools_of(name))
    try:
        made = renderer(template).render([row])[0]
    except UserError as e:
        return e.message
    return made.message if isinstance(made, RowError) else made


CASES = [(t, c) for t in NAMES for c in CONVERSATIONS]


@needs_templates
def test_every_case_is_proved_or_listed():
    found = {case: o if isinstance(o := outcome(*case), str) else "proved" for case in CASES}
    assert found == {case: expected(*case) for case in CASES}


@needs_templates
def test_share_of_proved_cases():
    """At least 95 % of what the templates can render, and of all that they do not refuse, is proved and trained."""
    count = Counter(o if isinstance(o := outcome(*case), str) else "proved" for case in CASES)
    not_refused = count.total() - count["the chat template refuses this conversation"]
    can_render = not_refused - count["the chat template does not render the tool calls of an answer"]
    assert count["proved"] / not_refused >= 0.95
    assert count["proved"] / can_render >= 0.99


def runs(weights: np.ndarray) -> list[tuple[int, int]]:
    """Stretches of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (weights > 0).astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def last_part(text: str) -> str:
    return text.rsplit("</think>", 1)[-1].strip()


@needs_templates
@pytest.mark.parametrize("template", NAMES)
def test_trained_is_what_generation_would_have_to_write(template):
    """Seen from outside: each run of trained tokens follows exactly a prompt, holds its message, ends with a stop."""
    r = renderer(template)
    for name, messages in CONVERSATIONS.items():
        made = outcome(template, name)
        if isinstance(made, str):
            continue
        answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        prompts = {}
        for i in answers:
            for thinking in (None, True, False):
                prompts[tuple(r.prompt(messages[:i], tools_of(name), thinking=thinking))] = i
        seen = []
        for sequence in made.sequences:
            ids = sequence.ids.tolist()
            for a, b in runs(sequence.weights):
                index = prompts[tuple(ids[:a])]
                seen.append(index)
                assert ids[b - 1] in r.stop_ids[:2], (name, index)
                assert sequence.reasons[b - 1] == STOP
                check_message(r, sequence, (a, b), messages[index], (name, index))
        assert sorted(seen) == answers, name


def check_message(r: Renderer, sequence, run, message, at):
    a, b = run
    text = r.spec.decode(sequence.ids[a:b].tolist())
    assert set(sequence.reasons[a:b].tolist()) <= {SCAFFOLD, CONTENT, STOP}
    content = sequence.ids[a:b][sequence.reasons[a:b] == CONTENT]
    if message.get("tool_calls"):
        function = message["tool_calls"][0]["function"]
        assert function["name"] in text, at
        assert all(str(v) in text for v in function["arguments"].values()), at
    elif message.get("reasoning_content") is None and "</think>" not in message["content"]:
        assert r.spec.decode(content.tolist()).strip() == message["content"].strip(), at
    assert last_part(message["content"]) in text, at


# -- the template's own marks
MARKED = [n for n in NAMES if re.search(r"\{%-?\s*generation", (folder() / f"{n}.jinja").read_text("utf-8"))]


def in_form(r: Renderer, messages: list) -> list:
    from posttrain.data.shapes import arrange

    return arrange(messages, r.spec.shape)


def marked(template: str, messages: list, tools) -> tuple[list[int], np.ndarray]:
    """Ids and marks as transformers renders them; a token is marked where any of its characters is."""
    r = renderer(template)
    tokenizer = tokenizer_for(r.spec.template)
    texts, spans = render_jinja_template(
        [in_form(r, messages)], tools=tools, chat_template=r.spec.template, return_assistant_tokens_mask=True,
        **tokenizer.special_tokens_map)
    encoded = tokenizer.backend_tokenizer.encode(texts[0], add_special_tokens=False)
    mask = [any(a < end and start < b for a, b in spans[0]) for start, end in encoded.offsets]
    return encoded.ids, np.array(mask)


def same_end(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a[::-1], b[::-1], strict=False)) if x != y), min(len(a), len(b)))


@needs_templates
@pytest.mark.parametrize("template", MARKED)
def test_agrees_with_the_generation_marks(template):
    """Nothing outside the marks is trained beyond scaffold and stop; all that they mark of a turn is trained.

    The last answer of each conversation, against what transformers marks: from the first token that both share on.
    """
    r = renderer(template)
    for name, messages in CONVERSATIONS.items():
        made = outcome(template, name)
        if isinstance(made, str) or name == "spelled control tokens":  # transformers reads spellings as control tokens
            continue
        last = max(i for i, m in enumerate(messages) if m["role"] == "assistant")
        ids, mask = marked(template, messages[:last + 1], tools_of(name))
        sequence = made.sequences[-1]
        start, end = runs(sequence.weights)[-1]
        if len(sequence) > len(ids) and sequence.ids.tolist()[:len(ids)] == ids:  # a stop was appended
            ids, mask = sequence.ids.tolist(), np.append(mask, [True] * (len(sequence) - len(ids)))
        shared = same_end(sequence.ids.tolist(), ids)
        assert shared > len(sequence) - end, name
        reasons, trained, mask = sequence.reasons[-shared:], sequence.weights[-shared:] > 0, mask[-shared:]
        assert set(reasons[trained & ~mask].tolist()) <= {SCAFFOLD, STOP}, name
        content = np.flatnonzero(sequence.reasons[start:end] == CONTENT) + start
        if messages[last].get("reasoning_content") is None and "</think>" not in messages[last]["content"]:
            assert len(sequence) - shared <= content[0], name
        own = np.arange(len(sequence) - shared, len(sequence)) >= start
        left = [i for i in np.flatnonzero(mask & ~trained & own)]
        text = r.spec.decode([ids[len(ids) - shared + i] for i in left])
        for token in r.spec.control:  # white space and eos after the stop may be marked; no text may
            text = text.replace(token, "")
        assert not text.strip(), (name, text)
