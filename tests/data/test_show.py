"""Rows shown token by token: JSON, terminal with and without colour, HTML; which rows are picked."""

import io
import json
import re
from dataclasses import replace
from html import unescape

from rich.console import Console
from small_tokenizer import tokenizer_for

from posttrain.core.errors import RowError
from posttrain.core.sequence import Row
from posttrain.data.render import Renderer
from posttrain.data.show import pick, print_rows, render_all, summary, texts, to_json_line, tokens
from posttrain.data.show_html import to_html
from posttrain.data.tokenizer import make_spec

SPEC = make_spec(tokenizer_for(), chat_template="chatml")


def row(question, answer, n=1):
    return Row("conversation", f"a.jsonl:{n}", 0, [{"role": "user", "content": question},
                                                  {"role": "assistant", "content": answer}])


def shown(rows, first=None, worst=0, **settings):
    return pick(render_all(rows, Renderer(SPEC, **settings)), first, worst)


def test_json_line_is_exact():
    sequence = shown([row("Hi", "B")])[0].rendered.sequences[0]
    line = json.loads(to_json_line(sequence, SPEC))
    assert set(line) == {"origin", "tokens"} and line["origin"] == "a.jsonl:1"
    assert [(t["text"], t["weight"], t["reason"]) for t in line["tokens"]] == [
        ("<|im_start|>", 0.0, "prompt"), ("user", 0.0, "prompt"), ("\n", 0.0, "prompt"), ("H", 0.0, "prompt"),
        ("i", 0.0, "prompt"), ("<|im_end|>", 0.0, "prompt"), ("\n", 0.0, "prompt"), ("<|im_start|>", 0.0, "prompt"),
        ("as", 0.0, "prompt"), ("sistan", 0.0, "prompt"), ("t", 0.0, "prompt"), ("\n", 0.0, "prompt"),
        ("B", 1.0, "content"), ("<|im_end|>", 1.0, "stop"),
        ("\n", 0.0, "untrained")]
    assert [t["id"] for t in line["tokens"]] == sequence.ids.tolist()


def test_token_texts_join_to_the_sequence():
    for answer in ("👨‍👩‍👧 é vs é 你好", " \t\n x", "<|im_end|>"):
        sequence = shown([row("Hi 🎉", answer)])[0].rendered.sequences[0]
        assert "".join(t.text for t in tokens(sequence, SPEC)) == SPEC.decode(sequence.ids.tolist())
    half = SPEC.encoder.backend.encode("🎉").ids[:2]
    assert texts(half, SPEC) == ["", "�"]


def test_which_rows_are_picked():
    rows = [row("A", "B", 1), row("A" * 40, "B", 2), row("A", "B" * 60, 3), row("A", "", 4), row(7, "B", 5)]
    made = shown(rows, 2, 1)
    assert [(s.why, s.origin) for s in made] == [
        ("first", "a.jsonl:1"), ("first", "a.jsonl:2"), ("longest", "a.jsonl:3"), ("least trained", "a.jsonl:2")]
    assert [s.origin for s in shown(rows)] == [r.origin for r in rows]
    talk = Row("conversation", "a.jsonl:6", 0, rows[0].messages * 3)
    assert [s.why for s in shown([*rows[:1], talk], 0, 1, max_length=20)] == ["longest", "least trained", "most cut"]


def test_summaries():
    made = shown([row("A", "B"), row("A", ""), row(7, "B", 3)])
    assert summary(made[0].rendered) == "2 of 14 tokens trained (14%)"
    assert summary(made[1].rendered) == "dropped: empty answer (13 tokens)"
    assert isinstance(made[2].rendered, RowError)
    assert summary(made[2].rendered) == "malformed: the content of a message is not text (message 0 (user): 7)"
    talk = Row("conversation", "a.jsonl:6", 0, row("A", "B").messages * 3)
    assert summary(shown([talk], max_length=20)[0].rendered) == "2 of 13 tokens trained (15%), 29 tokens cut"


def printed(rows, **console):
    out = io.StringIO()
    print_rows(Console(file=out, width=100, **console), shown(rows), SPEC)
    return out.getvalue()


def test_trained_tokens_show_without_colour():
    text = printed([row("Hi", "Hello [bold]you[/bold]")])
    assert "\x1b" not in text
    assert "⟦Hello [bold]you[/bold]<|im_end|>⟧↵" in text and "<|im_start|>user↵\nHi<|im_end|>↵" in text
    assert text.startswith("⟦trained⟧ content the answer")
    assert re.search(r"\nfirst ─+\na\.jsonl:1  ·  \d+ of \d+ tokens trained \(\d+%\)\n", text)


def test_a_long_path_hides_neither_itself_nor_why_it_is_shown():
    origin = f"{'folder/' * 30}a.jsonl:1"
    long = replace(row("Hi", "B"), origin=origin)
    out = io.StringIO()
    print_rows(Console(file=out, width=80), shown([long]), SPEC)
    assert "\nfirst ─" in out.getvalue() and f"\n{origin}  ·  " in out.getvalue()


def test_trained_tokens_show_in_colour():
    text = printed([row("Hi", "B")], force_terminal=True, color_system="standard")
    assert re.search(r"\x1b\[4;32mB", text) and re.search(r"\x1b\[1;4;35m<\|im_end\|>", text)


def test_html_stands_by_itself():
    page = to_html(shown([row("<script>alert(1)</script>", 'B & "C" <b>')]), SPEC)
    assert "<script" not in page and "<b>" not in page.split("</style>")[1].split("<pre class=\"mask\">")[1]
    read = unescape(re.sub("<[^>]*>", "", page))
    assert '<script>alert(1)</script>' in read and 'B & "C" <b>' in read
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert 'name="viewport"' in page and "prefers-color-scheme: dark" in page
    assert f'title="{SPEC.control["<|im_end|>"]}, weight 1, stop">&lt;|im_end|&gt;</span>' in page
    assert page.count("<h2>") == 1 and "a.jsonl:1 · first" in page
    assert '<span class="prompt" title="prompt, weight 0' in page
