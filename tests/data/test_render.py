"""Spans, seams, stops and history on small conversations with exact tokens; on real rows, ids equal to transformers."""

import gzip
import json

import numpy as np
import pytest
from rendering import a, one, renderer, row, shown, spans, u
from small_tokenizer import tokenizer_for
from tokenizers import decoders, normalizers, pre_tokenizers

from posttrain.core.errors import RowError
from posttrain.core.sequence import REASONS
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer, make_spec


# -- exact masks
def test_one_answer():
    r = renderer()
    assert spans(r, u("Hi"), a("Hello.")) == [[
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", 0, "prompt"),
        ("Hello.", 1, "content"), ("<|im_end|>", 1, "stop"), ("\n", 0, "untrained")]]


def test_exact_ids(shared_data):
    """The Qwen3 vocabulary under chatml: ids, weights and reasons, token by token."""
    r = Renderer(load_tokenizer(shared_data / "qwen3_tokenizer", chat_template="chatml"))
    made = one(r, u("2+2?"), a("4")).sequences[0]
    assert made.ids.tolist() == [151644, 872, 198, 17, 10, 17, 30, 151645, 198, 151644, 77091, 198, 19, 151645, 198]
    assert made.weights.tolist() == [0.0] * 12 + [1.0, 1.0, 0.0]
    assert [REASONS[x] for x in made.reasons[11:]] == ["prompt", "content", "stop", "untrained"]
    assert r.stop_ids == [151645, 151643]
    assert r.prompt([u("2+2?")]) == made.ids.tolist()[:12]


def test_every_answer_is_trained_in_one_sequence():
    assert spans(renderer(), u("A"), a("B"), u("C"), a("D")) == [[
        ("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n", 0, "prompt"),
        ("B", 1, "content"), ("<|im_end|>", 1, "stop"),
        ("\n<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\n", 0, "prompt"),
        ("D", 1, "content"), ("<|im_end|>", 1, "stop"), ("\n", 0, "untrained")]]


def test_only_the_last_answer():
    made = spans(renderer(train_on="last"), u("A"), a("B"), u("C"), a("D"))[0]
    assert made[1] == ("B<|im_end|>", 0, "untrained")
    assert [s for s in made if s[1]] == [("D", 1, "content"), ("<|im_end|>", 1, "stop")]


def test_all_tokens():
    made = spans(renderer(train_on="all_tokens"), u("A"), a("B"), u("C"))[0]
    assert made == [("<|im_start|>", 0, "prompt"), ("user\nA<|im_end|>\n<|im_start|>assistant\n", 1, "text"),
                    ("B", 1, "content"), ("<|im_end|>", 1, "stop"), ("\n<|im_start|>user\nC<|im_end|>\n", 1, "text")]


def test_message_weights():
    made = spans(renderer(), u("A"), a("B", weight=0), u("C"), a("D", weight=0.5))[0]
    assert [s for s in made if s[2] in ("content", "stop", "untrained")] == [
        ("B<|im_end|>", 0, "untrained"), ("D", 0.5, "content"), ("<|im_end|>", 0.5, "stop"), ("\n", 0, "untrained")]
    made = spans(renderer(train_on="all_tokens"), u("A"), a("B", weight=0), u("C"), a("D", weight=2))[0]
    assert ("B<|im_end|>", 0, "untrained") in made and ("D", 2, "content") in made
    for bad in (-1, "1", float("nan")):
        with pytest.raises(RowError, match="the weight of a message is not a number from 0 up"):
            one(renderer(), u("A"), a("B", weight=bad))


def test_empty_answers():
    r = renderer()
    made = one(r, u("A"), a("  "))
    assert made.dropped == "empty answer" and made.sequences == [] and made.rendered > 0
    made = one(r, u("A"), a(""), u("C"), a("D"))
    assert made.dropped is None and made.notes == ("an empty answer among others: not trained",)
    assert [s for s in shown(r, made.sequences[0]) if s[1]] == [("D", 1, "content"), ("<|im_end|>", 1, "stop")]
    assert one(r, u("A"), a("B", weight=0)).dropped == "nothing to train"
    assert one(r, u("A")).dropped == "nothing to train"


def test_what_follows_the_last_answer_is_said():
    made = one(renderer(), u("A"), a("B"), u("C"))
    assert made.notes == ("messages after the last trained answer: not rendered",)


def test_white_space_of_an_answer_is_the_templates_matter():
    keep, trim = "{{ m.content }}", "{{ m.content | trim }}"
    for content, text in ((keep, " \tB \n"), (trim, "B")):
        template = ("{% for m in messages %}[{{ m.role }}] " + content + "<|end|>{% endfor %}"
                    "{% if add_generation_prompt %}[assistant] {% endif %}")
        made = spans(renderer(template), u("A"), a(" \tB \n"))
        assert [s for s in made[-1] if s[2] == "content"][-1][0].strip(" ") == text.strip(" ")


# -- history
REWRITES = ("{% for m in messages %}{% if m.role == 'user' %}<|u|>{{ m.content }}{% else %}<|a|>"
            "{{ '<think></think>' if loop.last }}{{ m.content }}<|end|>{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}<|a|>{% endif %}")


def test_a_template_that_rewrites_history_gives_a_sequence_per_answer():
    assert spans(renderer(REWRITES), u("A"), a("B"), u("C"), a("D")) == [
        [("<|u|>A<|a|>", 0, "prompt"), ("<think></think>", 1, "scaffold"), ("B", 1, "content"), ("<|end|>", 1, "stop")],
        [("<|u|>A<|a|>B<|end|><|u|>C<|a|>", 0, "prompt"), ("<think></think>", 1, "scaffold"), ("D", 1, "content"),
         ("<|end|>", 1, "stop")]]


# -- ends of turns
NO_END = ("[start]{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% endif %}{# <|user|> #}")


def test_the_next_role_ends_a_turn_where_the_template_writes_no_end():
    r = renderer(NO_END)
    assert r.spec.stops[0] == ("<|user|>", "the template writes no end after an answer; the next role's token, which "
                                           "follows, is the stop")
    assert spans(r, u("A"), a("B"), u("C"), a("D")) == [[
        ("[start]<|user|>A<|assistant|>", 0, "prompt"), ("B", 1, "content"), ("<|user|>", 1, "stop"),
        ("C<|assistant|>", 0, "prompt"), ("D", 1, "content"), ("<|user|>", 1, "stop")]]


BARE = ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}")


def test_eos_is_appended_where_nothing_ends_a_turn():
    """History carries no eos, so each answer has a sequence of its own, with history as generation is given it."""
    r = renderer(BARE)
    assert r.spec.stops == [("<eos>", "the template writes no end after an answer; eos is appended")]
    assert spans(r, u("A"), a("B"), u("C"), a("D")) == [
        [("user: A\nassistant:", 0, "prompt"), (" ", 1, "scaffold"), ("B", 1, "content"), ("<eos>", 1, "stop")],
        [("user: A\nassistant: B\nuser: C\nassistant:", 0, "prompt"), (" ", 1, "scaffold"), ("D", 1, "content"),
         ("<eos>", 1, "stop")]]


TOOLED = ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
          "{% for c in m.tool_calls or [] %}<|call|>{{ c.function.name }}({{ c.function.arguments | tojson }})"
          "<|close|>{% endfor %}{{ '<|wait|>' if m.tool_calls else '<|end|>' }}{% endfor %}"
          "{% if add_generation_prompt %}<|assistant|>{% endif %}{# <|user|><|tool|> #}")


def test_a_tool_call_has_an_end_of_its_own():
    r = renderer(TOOLED)
    assert [t for t, _ in r.spec.stops] == ["<|end|>", "<|wait|>", "<eos>"]
    call = a("", tool_calls=[{"function": {"name": "sky", "arguments": '{"city": "Rome"}'}}])
    made = spans(r, u("A"), call, {"role": "tool", "content": "blue"}, a("Blue."))
    assert made == [[
        ("<|user|>A<|end|><|assistant|>", 0, "prompt"), ("<|call|>", 1, "scaffold"),
        ('sky({"city": "Rome', 1, "content"), ('"})', 1, "scaffold"), ("<|close|><|wait|>", 1, "stop"),
        ("<|tool|>blue<|end|><|assistant|>", 0, "prompt"), ("Blue.", 1, "content"), ("<|end|>", 1, "stop")]]


# -- the seam
def test_an_answer_that_merges_with_its_prompt():
    r"""`\n` ends the prompt and begins the answer; tokenized as one they are one token, which generation never sees."""
    r = renderer()
    assert r.spec.encoder.backend.encode("\n\n").tokens == ["ĊĊ"]
    made = one(r, u("A"), a("\nB"), u("C"), a("D"))
    assert [shown(r, s) for s in made.sequences] == [
        [("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n", 0, "prompt"), ("\nB", 1, "content"),
         ("<|im_end|>", 1, "stop"), ("\n", 0, "untrained")],
        [("<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\n\nB<|im_end|>\n<|im_start|>user\nC<|im_end|>\n"
          "<|im_start|>assistant\n", 0, "prompt"), ("D", 1, "content"), ("<|im_end|>", 1, "stop"),
         ("\n", 0, "untrained")]]
    for sequence, before in zip(made.sequences, ([u("A")], [u("A"), a("\nB"), u("C")]), strict=True):
        start = int(np.flatnonzero(sequence.weights)[0])
        assert sequence.ids.tolist()[:start] == r.prompt(before)
    whole = one(renderer(train_on="all_tokens"), u("A"), a("\nB")).sequences
    assert len(whole) == 1 and whole[0].weights[1:].all()


@pytest.mark.parametrize("name", ["qwen3_tokenizer", "tokenizers/minimind", "tokenizers/smollm2_like",
                                  "tokenizers/llama2"])
@pytest.mark.parametrize("template", ["plain", "alpaca", "chatml", "llama2", "auto"])
def test_seams_on_real_rows(shared_data, name, template):
    """100 real rows: what precedes each answer is `prompt`, to the id; the answers are decoded whole."""
    r = Renderer(load_tokenizer(shared_data / name, chat_template=template), max_length=100_000)
    check_seams(r, real_rows(shared_data))


@pytest.mark.parametrize("space", ["legacy", "first", "always"])
@pytest.mark.parametrize("template", ["plain", "alpaca", "chatml", "llama2"])
def test_seams_where_sentencepiece_puts_a_space(shared_data, template, space):
    """The three ways in which tokenizers of this family begin a text with a space of their own."""
    from transformers import AutoTokenizer

    hf = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "llama2")
    backend = hf.backend_tokenizer
    if space == "legacy":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.normalizer = None
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=space, split=False)
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                         decoders.Strip(" ", 1, 0)])
    r = Renderer(make_spec(hf, chat_template=template), max_length=100_000)
    check_seams(r, real_rows(shared_data))


STARTS = (" ", "\n", "\n\n", "  ", "\t", ".", "你", "4")


def check_seams(r, rows):
    rows = [*rows, *(row(u("x"), a(start + "word"), n=n) for n, start in enumerate(STARTS))]
    for given, made in zip(rows, r.render(rows), strict=True):
        sequence = made.sequences[0]
        start, stop = np.flatnonzero(sequence.weights)[[0, -1]]
        assert sequence.ids.tolist()[:start] == r.prompt(given.messages[:1])
        assert sequence.ids[stop] == r.stop_ids[0]
        answer = r.spec.decode(sequence.ids[start:stop].tolist())
        assert given.messages[1]["content"].strip() in answer


def real_rows(shared_data):
    with gzip.open(shared_data / "stanford_alpaca" / "alpaca_data.json.gz") as f:
        rows = [r for r in json.load(f)[:90] if r["output"]]
    made = [row(u(r["instruction"] + r["input"]), a(r["output"]), n=n) for n, r in enumerate(rows)]
    lines = (shared_data / "belle" / "dev1K.json").read_text("utf-8").splitlines()
    for n, line in enumerate(lines[:20]):
        r = json.loads(line)
        if r.get("std_answer", "").strip():
            made.append(row(u(r["question"]), a(r["std_answer"]), n=1000 + n))
    return made


@pytest.mark.parametrize("name", ["tokenizers/minimind", "tokenizers/smollm2_like"])
def test_renders_as_transformers(shared_data, name):
    """Own templates: the ids of a whole conversation are those of apply_chat_template."""
    from transformers import AutoTokenizer

    hf, r = AutoTokenizer.from_pretrained(shared_data / name), Renderer(load_tokenizer(shared_data / name))
    rows = real_rows(shared_data)
    for given, made in zip(rows, r.render(rows), strict=True):
        if made.sequences:
            whole = hf.apply_chat_template(given.messages)["input_ids"]
            assert sum(map(len, made.sequences)) == len(whole) and made.sequences[0].ids.tolist() == whole
        assert r.prompt(given.messages[:1]) == hf.apply_chat_template(
            given.messages[:1], add_generation_prompt=True)["input_ids"]


# -- dates
def test_the_date_is_frozen():
    dated = "{{ strftime_now('%d %B %Y') }}" + BARE
    spec = make_spec(tokenizer_for(dated), template_date="2024-02-29")
    assert spec.chat.prints_date and spec.date == "2024-02-29"
    assert spec.decode(Renderer(spec).prompt([u("A")])) == "29 February 2024user: A\nassistant:"
