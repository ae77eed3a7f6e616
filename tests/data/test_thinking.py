"""The thinking switch: which value a run takes, and that each answer follows the prompt that generation is given."""

import pytest
from small_tokenizer import tokenizer_for

from posttrain.core.errors import UserError
from posttrain.core.sequence import REASONS, Row
from posttrain.data.render import Renderer
from posttrain.data.thinking import choose_thinking
from posttrain.data.tokenizer import make_spec

TURNS = ("{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% else %}<|a|>BLOCK"
         "{{ m.content }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|a|>PROMPT{% endif %}")
REASONED = "{{ '<think>\\n' + (m.reasoning_content or '') + '\\n</think>\\n\\n' }}"
# As Qwen3: by default the prompt is silent and the answer writes an empty block.
QWEN = TURNS.replace("BLOCK", REASONED).replace(
    "PROMPT", "{{ '<think>\\n\\n</think>\\n\\n' if enable_thinking is defined and enable_thinking is false }}")
# As Nemotron: the default prompt opens a block that an answer without reasoning does not have.
NEMOTRON = TURNS.replace("BLOCK", "{{ '<think>\\n' + m.reasoning_content + '\\n</think>\\n' if m.reasoning_content "
                                  "else '<think></think>' }}").replace(
    "PROMPT", "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\\n' }}")
# As DeepSeek-R1: the prompt opens a block, the rendered turn never has one, and there is no switch.
DEEPSEEK = TURNS.replace("BLOCK", "").replace("PROMPT", "<think>\n").replace(
    "{{ m.content }}<|end|>", "{{ m.content.split('</think>')[-1] }}<|end|>")


def row(answer="B", n=1, **more):
    return Row("conversation", f"a:{n}", 0, [{"role": "user", "content": "A"},
                                            {"role": "assistant", "content": answer, **more}])


THOUGHT = row(reasoning_content="why")


def of(template, **settings):
    return Renderer(make_spec(tokenizer_for(template)), **settings)


def trained(r, given):
    """The prompt, and the trained tokens with their reasons."""
    made = r.render([given])[0].sequences[0]
    start = int((made.weights > 0).argmax())
    stop = len(made) - int((made.weights[::-1] > 0).argmax())
    parts = {}
    for i, reason in zip(made.ids[start:stop].tolist(), made.reasons[start:stop], strict=True):
        parts.setdefault(REASONS[reason], []).append(i)
    return (r.spec.decode(made.ids[:start].tolist()), r.spec.decode(made.ids[start:stop].tolist()),
            {k: r.spec.decode(v) for k, v in parts.items()})


def test_the_default_is_taken_wherever_it_fits():
    r = of(QWEN)
    assert choose_thinking("auto", r, [row(), row()]) == (None, "its prompts fit these rows")
    assert trained(r, row()) == ("<|u|>A<|a|>", "<think>\n\n</think>\n\nB<|end|>", {
        "scaffold": "<think>\n\n</think>\n\n", "content": "B", "stop": "<|end|>"})
    assert trained(r, THOUGHT)[1] == "<think>\nwhy\n</think>\n\nB<|end|>"
    assert trained(of(QWEN, enable_thinking=False), row()) == (
        "<|u|>A<|a|><think>\n\n</think>\n\n", "B<|end|>", {"content": "B", "stop": "<|end|>"})


def test_the_switch_follows_the_data_where_the_default_does_not_fit():
    r = of(NEMOTRON)
    assert choose_thinking("auto", r, [row()] * 3) == (
        False, "none of the first 3 rows carries reasoning, and the template's default prompt does not fit that")
    assert choose_thinking("auto", r, [THOUGHT])[0] is None
    assert choose_thinking("auto", r, [row(), THOUGHT]) == (
        None, "1 of the first 2 rows carry reasoning: each answer is trained under the switch that fits it, "
              "and prompts get the template's default")
    assert trained(r, row())[:2] == ("<|u|>A<|a|><think></think>", "B<|end|>")
    assert trained(r, THOUGHT)[:2] == ("<|u|>A<|a|><think>\n", "why\n</think>\nB<|end|>")


def test_what_is_set_is_kept_strictly():
    assert choose_thinking("false", of(QWEN), [THOUGHT]) == (False, "as set")
    with pytest.raises(UserError, match="the turn does not begin where its generation prompt ends") as e:
        of(QWEN, enable_thinking=False).render([THOUGHT])
    assert e.value.where == "a:1, message 1 (assistant)"
    assert "set enable_thinking to auto" in e.value.fix
    assert choose_thinking("auto", of("{% for m in messages %}{{ m.content }}<eos>{% endfor %}"), [THOUGHT]) == (
        None, "the chat template has no such switch")


def test_a_block_that_the_prompt_opens_is_closed():
    """The prompt is what generation is given; the span closes its block, around the reasoning or around nothing."""
    r = of(DEEPSEEK)
    assert r.spec.shape.opens_think
    for given, said, content in ((row(), "\n</think>\n\nB<|end|>", "B"),
                                 (THOUGHT, "why\n</think>\n\nB<|end|>", "whyB"),
                                 (row("<think>\nwhy\n</think>\n\nB"), "why\n</think>\n\nB<|end|>", "whyB"),
                                 (row("why\n</think>\n\nB"), "why\n</think>\n\nB<|end|>", "whyB")):
        prompt, text, parts = trained(r, given)
        assert (prompt, text) == ("<|u|>A<|a|><think>\n", said)
        assert parts["content"].replace("\n", "") == content


def test_reasoning_inside_the_content_goes_where_the_template_reads_it():
    assert trained(of(QWEN), row("<think>\nwhy\n</think>\n\nB")) == trained(of(QWEN), THOUGHT)


def test_the_value_kept_with_the_tokenizer_is_preferred():
    spec = make_spec(tokenizer_for(QWEN))
    spec.enable_thinking = False
    r = Renderer(spec)
    assert r.spec.decode(r.prompt([{"role": "user", "content": "A"}])) == "<|u|>A<|a|><think>\n\n</think>\n\n"
    assert trained(r, row())[:2] == ("<|u|>A<|a|><think>\n\n</think>\n\n", "B<|end|>")
    assert trained(r, THOUGHT)[:2] == ("<|u|>A<|a|>", "<think>\nwhy\n</think>\n\nB<|end|>")
