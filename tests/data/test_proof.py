"""What is refused, and in which words: rows that templates refuse, spans that do not hold their message."""

import pytest
from rendering import a, fails, one, renderer, row, spans, u
from small_tokenizer import tokenizer_for
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from posttrain.core.errors import RowError, UserError
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import make_spec


def test_a_row_that_the_template_refuses():
    r = renderer("{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
                 "{{ m.content }}<eos>{% endfor %}")
    error = fails(RowError, "the chat template refuses this conversation", r, {"role": "system", "content": "s"},
                  u("A"), a("B"))
    assert error.found == "no system" and error.where == "rows.jsonl:1"


def test_content_that_is_no_text():
    r = renderer()
    error = fails(RowError, "the content of a message is not text", r, u(7), a("B"))
    assert error.found == "message 0 (user): 7"
    error = fails(RowError, "only text can be trained", r, u([{"type": "image_url", "image_url": "x"}]), a("B"))
    assert "image_url" in error.found
    assert spans(r, u([{"type": "text", "text": "A"}]), a([{"type": "text", "text": "B"}]))[0][1][0] == "B"
    fails(RowError, "a tool call has no name", r, u("A"), a("", tool_calls=[{"function": {}}]))
    error = fails(RowError, "the text holds half of a character", r, u("A"), a("\ud83d"))
    assert error.found == r"a lone surrogate, \ud83d"


def test_a_vocabulary_that_cannot_spell():
    bare = Tokenizer(models.WordLevel({"<eos>": 0, "?": 1, "user": 2, ":": 3, "assistant": 4, "yes": 5}, unk_token="?"))
    bare.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = TokenizersBackend(tokenizer_object=bare, eos_token="<eos>", unk_token="?")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}<eos>{% endfor %}"
    r = Renderer(make_spec(tokenizer))
    assert fails(RowError, "the vocabulary cannot spell an answer", r, u("yes"), a("no")).found == "' ? <eos>'"
    assert one(r, u("yes"), a("yes")).dropped is None


def test_a_template_that_drops_the_answer():
    r = renderer("{% for m in messages %}{% if 'secret' not in m.content %}{{ m.content }}{% endif %}<eos>{% endfor %}")
    error = fails(UserError, "a trained span does not match its message", r, u("A"), a("a secret"))
    assert error.where == "rows.jsonl:1, message 1 (assistant)"
    assert error.found == "the span reads '<eos>'"
    assert error.expected == "scaffold, then 'a secret', then the stop token"


def test_a_template_without_tool_calls():
    r = renderer("{% for m in messages %}{{ m.content }}<eos>{% endfor %}")
    call = {"function": {"name": "sky", "arguments": {}}}
    error = fails(UserError, "the chat template does not render the tool calls of an answer", r, u("A"),
                  a("B", tool_calls=[call]))
    assert "choose a chat_template that renders it" in error.fix


def test_what_a_template_leaves_out_is_said():
    r = renderer("{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{{ m.content }}<eos>{% endif %}"
                 "{% endfor %}")
    made = one(r, {"role": "system", "content": "s"}, u("A"), a("B", reasoning_content="r"),
               tools=[{"name": "sky", "description": "", "parameters": {}}])
    assert set(made.notes) == {f"{what}: not rendered by the template" for what in (
        "the system message", "the tool definitions", "reasoning")}
    assert r.notes == dict.fromkeys(made.notes, 1)


def test_a_turn_that_does_not_begin_with_its_prompt():
    with pytest.raises(UserError, match="the turn does not begin where its generation prompt ends") as e:
        renderer("{% for m in messages %}{{ m.role }}={{ m.content }}<eos>{% endfor %}"
                 "{% if add_generation_prompt %}answer={% endif %}")
    assert e.value.found == ("the prompt ends with 'nswer=', the turn goes on with 'ssistant=zqanswerqz<eos>'")


def test_text_after_the_stop():
    r = renderer("{% for m in messages %}{{ m.content }}<eos>{{ 'more' if m.content == 'B' }}{% endfor %}")
    error = fails(UserError, "text stands after the stop token of an answer", r, u("A"), a("B"))
    assert error.found == "'<eos>more'"


def test_generation_marks_that_leave_out_part_of_an_answer():
    r = renderer("{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}<eos>{% else %}{{ m.content[:1] }}"
                 "{% generation %}{{ m.content[1:] }}<eos>{% endgeneration %}{% endif %}{% endfor %}")
    error = fails(UserError, "the template's own generation marks leave out part of an answer", r, u("A"), a("Bcd"))
    assert error.found == "'Bcd' stands outside {% generation %}"


def test_two_bos():
    tokenizer = tokenizer_for("{{ bos_token }}{{ bos_token }}{% for m in messages %}{{ m.content }}<eos>{% endfor %}")
    r = Renderer(make_spec(tokenizer))
    assert fails(UserError, "a sequence begins with two BOS tokens", r, u("A"), a("B")).expected == "one BOS"


def test_errors_do_not_stop_their_neighbours():
    made = renderer().render([row(u("A"), a("B")), row(u(7), a("B"), n=2), row(u("C"), a("D"), n=3)])
    assert [type(m).__name__ for m in made] == ["Rendered", "RowError", "Rendered"]
    assert made[1].where == "rows.jsonl:2"
