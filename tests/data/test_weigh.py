"""What is cut, dropped and split; token counts balance whatever happens."""

import numpy as np
import pytest
from small_tokenizer import tokenizer_for

from posttrain.core.errors import UserError
from posttrain.core.sequence import REASONS, Row
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import make_spec
from posttrain.data.weigh import Rendered, split_text

SPEC = make_spec(tokenizer_for(), chat_template="chatml")
BARE = make_spec(tokenizer_for("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
                               "{% if add_generation_prompt %}assistant:{% endif %}"))


def talk(*contents, n=1, **more):
    roles = ("user", "assistant")
    return Row("conversation", f"a.jsonl:{n}", 0, [
        {"role": roles[i % 2], "content": c} | (more if i % 2 else {}) for i, c in enumerate(contents)])


def render(row, spec=SPEC, **settings) -> Rendered:
    return Renderer(spec, **settings).render([row])[0]


def balance(made: Rendered) -> bool:
    inside = sum(map(len, made.sequences))
    return made.rendered == inside + made.cut if made.dropped is None else made.sequences == [] and made.cut == 0


THREE = ("A", "B" * 8, "C", "D" * 8, "E", "F" * 8)


def test_cut_keeps_whole_leading_turns():
    whole = render(talk(*THREE)).sequences[0]
    ends = [i + 1 for i, r in enumerate(whole.reasons) if REASONS[r] == "stop"]
    for limit in (ends[1], ends[1] + 1, ends[2] - 1):
        made = render(talk(*THREE), max_length=limit)
        assert len(made.sequences) == 1 and made.was_cut
        kept = made.sequences[0]
        assert kept.ids.tolist() == whole.ids.tolist()[:ends[1]]  # up to the second answer's stop, and not further
        assert REASONS[kept.reasons[-1]] == "stop" and kept.weights[-1] == 1
        assert made.cut == len(whole) - ends[1] and balance(made)
    assert render(talk(*THREE), max_length=len(whole)).was_cut is False


def test_the_line_end_after_the_last_stop_may_be_cut():
    whole = render(talk("A", "B")).sequences[0]
    made = render(talk("A", "B"), max_length=len(whole) - 1)
    assert made.cut == 1 and made.sequences[0].trained == whole.trained and balance(made)


def test_the_first_exchange_must_fit():
    whole = render(talk(*THREE)).sequences[0]
    first = [REASONS[r] for r in whole.reasons].index("stop") + 1
    made = render(talk(*THREE), max_length=first - 1)
    assert made.dropped == "first exchange longer than max_length"
    assert made.rendered == len(whole) and balance(made)
    assert render(talk(*THREE), max_length=first).dropped is None


def test_drop_and_error():
    made = render(talk(*THREE), max_length=10, overlong="drop")
    assert made.dropped == "longer than max_length" and balance(made)
    with pytest.raises(UserError, match="a row is longer than max_length") as e:
        render(talk(*THREE), max_length=10, overlong="error")
    whole = render(talk(*THREE)).rendered
    assert (e.value.where, e.value.found, e.value.expected) == ("a.jsonl:1", f"{whole} tokens", "at most 10")
    assert e.value.fix == f"set max_length={whole}, or overlong to cut or drop"


def test_the_only_trained_answer_is_cut_away():
    made = render(talk(*THREE), max_length=30, train_on="last")
    assert made.dropped == "trained answer beyond max_length" and balance(made)


def test_a_sequence_per_answer_is_cut_from_the_end():
    whole = render(talk(*THREE), BARE)
    assert [len(s) for s in whole.sequences] == sorted(len(s) for s in whole.sequences) and len(whole.sequences) == 3
    limit = len(whole.sequences[1])
    made = render(talk(*THREE), BARE, max_length=limit)
    assert [s.ids.tolist() for s in made.sequences] == [s.ids.tolist() for s in whole.sequences[:2]]
    assert made.cut == len(whole.sequences[2]) and made.was_cut and balance(made)


@pytest.mark.parametrize("train_on", ["all", "last", "all_tokens"])
@pytest.mark.parametrize("overlong", ["cut", "drop"])
@pytest.mark.parametrize("spec", [SPEC, BARE], ids=["one sequence", "one per answer"])
def test_tokens_balance(train_on, overlong, spec):
    """At every length: rendered = trained + masked + cut, or all of it is dropped; and rendered never changes."""
    rows = [talk(*THREE), talk("A", "\nB", "C", "D"), talk("A", "", "C", "D"), talk("A", ""), talk("A"),
            talk("A", "B", "C"), talk("A", "B", "C", "D", weight=0), talk("A", "B", weight=0.5),
            Row("text", "a.jsonl:9", 0, text="some words " * 9), Row("text", "a.jsonl:10", 0, text=" \n")]
    full = [m.rendered for m in Renderer(spec, train_on=train_on, max_length=10_000).render(rows)]
    for max_length in range(2, 60):
        made = Renderer(spec, train_on=train_on, overlong=overlong, max_length=max_length).render(rows)
        assert all(map(balance, made))
        assert [m.rendered for m in made][:8] == full[:8]
        for sequence in (s for m in made for s in m.sequences):
            assert 2 <= len(sequence) <= max_length and sequence.trained
            assert sequence.weights[0] == 0 and len(sequence.ids) == len(sequence.weights) == len(sequence.reasons)
            assert (sequence.ids.dtype, sequence.weights.dtype, sequence.reasons.dtype) == (
                np.int32, np.float32, np.uint8)


# -- texts
def test_long_texts_lose_nothing():
    """Every token but the first is a target once; each later piece begins with the last token of the one before."""
    for length in range(2, 40):
        for max_length in range(2, 12):
            ids = list(range(100, 100 + length))
            pieces = split_text(ids, Row("text", "t:1"), max_length)
            assert all(2 <= len(p) <= max_length for p in pieces)
            targets = [int(i) for p in pieces for i, w in zip(p.ids, p.weights, strict=True) if w]
            assert targets == ids[1:]
            assert all(a.ids[-1] == b.ids[0] for a, b in zip(pieces, pieces[1:], strict=False))


def test_a_text_ends_with_eos_and_begins_as_the_tokenizer_begins():
    from tokenizers.processors import TemplateProcessing

    made = render(Row("text", "t:1", text="Hello <|im_end|>"), SPEC).sequences[0]
    assert SPEC.decode(made.ids.tolist()) == "Hello <|im_end|><eos>"
    assert SPEC.control["<|im_end|>"] not in made.ids  # a text spells, it does not control
    assert made.weights.tolist() == [0.0] + [1.0] * (len(made) - 1)
    assert [REASONS[r] for r in made.reasons] == ["prompt"] + ["text"] * (len(made) - 1)
    tokenizer = tokenizer_for(bos_token="<bos>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)])
    spec = make_spec(tokenizer)
    made = render(Row("text", "t:1", text="Hello"), spec).sequences[0]
    assert spec.decode(made.ids.tolist()) == "<bos>Hello<eos>" and made.trained == len(made) - 1
    assert render(Row("text", "t:1", text=" \n "), spec).dropped == "empty text"
