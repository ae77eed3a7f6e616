"""A reward model of its own, with a template of its own: what of an answer reaches it."""

from __future__ import annotations

import pytest

from posttrain.core.errors import UserError
from posttrain.core.sequence import Row
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer
from posttrain.train.rewards import ModelReward
from posttrain.train.rollout import Answer, lay

STERN = ("{% for m in messages %}{% if not m.content %}{{ raise_exception('say something') }}{% endif %}"
         "{{ '<' + m.role + '>' + m.content + eos_token }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}")


@pytest.fixture
def spec(tiny_model, tmp_path):
    """A template that refuses an empty message."""
    (path := tmp_path / "stern.jinja").write_text(STERN)
    return load_tokenizer(str(tiny_model), chat_template=str(path))


def answer(spec, text: str, stopped: bool = True) -> Answer:
    row = Row("prompt", f"p:{text}", messages=[{"role": "user", "content": "say red"}])
    return Answer(lay([1, 2], [3], stopped, row.origin), row, text, stopped, [0.0])


def test_an_empty_answer_is_a_prompt_that_ends(spec):
    """It has a score, whatever stands beside it and however the template takes an empty message."""
    seen = []
    reward = ModelReward(lambda sequences: seen.extend(sequences) or [float(len(s)) for s in sequences],
                         Renderer(spec), "other")
    scores = reward([answer(spec, "red."), answer(spec, ""), answer(spec, "blue.", stopped=False), answer(spec, "")])
    prompt = reward.renderer.prompt([{"role": "user", "content": "say red"}])
    assert scores == [len(s) for s in seen] and seen[1].ids.tolist() == [*prompt, spec.stop_ids[0]]
    assert seen[1].weights.tolist() == [0] * len(prompt) + [1] and (seen[3].ids == seen[1].ids).all()
    for which, text in ((0, "red."), (2, "blue.")):
        ids = seen[which].ids.tolist()
        assert ids[:len(prompt)] == prompt and spec.decode(ids[len(prompt):-1]) == text and ids[-1] == spec.stop_ids[0]


def test_an_answer_that_no_template_holds(spec):
    reward = ModelReward(None, Renderer(spec, max_length=8, overlong="drop"), "other")
    with pytest.raises(UserError) as e:
        reward([answer(spec, "red " * 20)])
    assert str(e.value).startswith("error: the reward model's template cannot render an answer\n"
                                   "  where:    reward: other\n  found:    longer than max_length (p:red ")
