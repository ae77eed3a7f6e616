"""Small conversations rendered and shown, for the tests of spans, seams and proofs."""

import pytest
from small_tokenizer import tokenizer_for

from posttrain.core.errors import RowError
from posttrain.core.sequence import REASONS, Row
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import make_spec


def u(text):
    return {"role": "user", "content": text}


def a(text, **more):
    return {"role": "assistant", "content": text, **more}


def row(*messages, n=1, tools=None):
    return Row("conversation", f"rows.jsonl:{n}", 0, list(messages), tools)


def renderer(template="chatml", **settings):
    """`template`: a built-in name, or the text of the tokenizer's own."""
    own = template if "{" in template else None
    return Renderer(make_spec(tokenizer_for(own), chat_template="auto" if own else template), **settings)


def shown(r, sequence):
    """[(text, weight, reason)], stretches of equal weight and reason joined."""
    made = []
    for i, w, reason in zip(sequence.ids.tolist(), sequence.weights.tolist(), sequence.reasons, strict=True):
        if made and made[-1][1:] == (w, REASONS[reason]):
            made[-1][0].append(i)
        else:
            made.append(([i], w, REASONS[reason]))
    return [(r.spec.decode(ids), w, reason) for ids, w, reason in made]


def one(r, *messages, **more):
    made = r.render([row(*messages, **more)])[0]
    if isinstance(made, RowError):
        raise made
    return made


def spans(r, *messages):
    return [shown(r, s) for s in one(r, *messages).sequences]


def fails(error, match, r, *messages, **more):
    with pytest.raises(error, match=match) as e:
        one(r, *messages, **more)
    return e.value
