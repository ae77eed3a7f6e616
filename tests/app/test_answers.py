"""A loaded model answers by the renderer's prompt and stop ids alone."""

from __future__ import annotations

import pytest

import posttrain
from posttrain.app.assistant import load
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError

HI = [{"role": "user", "content": "say red then 你好"}]


@pytest.fixture(scope="module")
def assistant(tiny_model):
    return load(tiny_model, make_settings({"dtype": "float32", "device": "cpu"}))


def test_one_question_may_be_a_string(assistant):
    assert assistant.chat(HI[0]["content"], max_new_tokens=5) == assistant.chat(HI, max_new_tokens=5)


def test_the_stream_is_the_text(assistant):
    pieces: list[str] = []
    for seed in range(4):  # random weights at temperature 2 sample bytes that are no characters
        pieces.clear()
        answer = assistant.answer(HI, on_text=pieces.append, max_new_tokens=40, temperature=2.0, seed=seed)
        assert "".join(pieces) == answer.text and len(pieces) > 1


def test_a_batch_answers_as_one_by_one(assistant):
    asked = [[{"role": "user", "content": f"say {w}"}] for w in ("red", "blue then green", "a longer thing to say")]
    together = [a.text for a in assistant.answers(asked, max_new_tokens=12)]
    assert together == [assistant.chat(a, max_new_tokens=12) for a in asked]


def test_a_system_prompt_is_put_first(assistant):
    assert assistant.renderer.prompt([{"role": "system", "content": "s"}, *HI]) != assistant.renderer.prompt(HI)
    assert assistant.chat(HI, system="s", max_new_tokens=8) == assistant.chat(
        [{"role": "system", "content": "s"}, *HI], max_new_tokens=8)


def test_the_ids_are_those_of_the_renderer(assistant, monkeypatch):
    seen = {}

    def spy(model, prompts, **how):
        seen.update(how, prompts=prompts)
        return []

    monkeypatch.setattr("posttrain.eval.answers.generate", spy)
    assistant.answers([HI], temperature=0.5, seed=3)
    assert seen["prompts"] == [assistant.renderer.prompt(HI)]
    assert seen["stop_ids"] == assistant.renderer.stop_ids and seen["temperature"] == 0.5 and seen["seed"] == 3


def test_describe_names_device_type_and_template(assistant):
    assert assistant.describe() == "cpu, float32, template plain"


def test_load_is_offered_by_the_package(tiny_model):
    assert posttrain.load is load
    with pytest.raises(UserError, match="no such model folder"):
        posttrain.load(f"{tiny_model}-absent")
