"""Exact answers, completions and answer loss of held-out questions."""

from __future__ import annotations

import json

import pytest
import torch

from posttrain.app.assistant import load
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.core.sequence import Row
from posttrain.eval import held_out
from posttrain.eval.answers import Answer
from posttrain.eval.held_out import Question, completed, read_questions, score
from posttrain.eval.nll import answer_loss

QUESTIONS = [Question("say red", "red.", "echo", "the colour", " red"), Question("say blue", "blue.", "echo",
                                                                                 "the colour", " blue")]


@pytest.fixture(scope="module")
def assistant(tiny_model):
    return load(tiny_model, make_settings({"dtype": "float32", "device": "cpu"}))


def test_questions_are_read(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"prompt": "p", "answer": "a", "kind": "k", "subject": "s"}) + "\n")
    assert read_questions(path) == [Question("p", "a", "k")]
    path.write_text('{"prompt": "p", "answer": "a"}\n{"prompt": "p"}\n')
    with pytest.raises(UserError, match="lacks its prompt or its answer") as caught:
        read_questions(path)
    assert caught.value.where == f"{path}:2"


def test_shares_count_answers(assistant, monkeypatch):
    said = [Answer(" red.\n", [1], True), Answer("blue", [1], False)]
    monkeypatch.setattr(held_out, "ask", lambda *a, **k: said)
    monkeypatch.setattr(held_out, "continue_text", lambda *a, **k: [" red and", "red"])
    found, answers = score(assistant.model, assistant.forward, assistant.renderer, QUESTIONS, completions=True)
    assert (found.exact_match, found.completes, found.stops) == (0.5, 0.5, 0.5) and answers == said
    assert found.perplexity == pytest.approx(torch.tensor(found.answer_loss).exp().item(), rel=1e-5)
    assert set(found.to_json()) == {"exact_match", "completes", "answer_loss", "perplexity", "stops"}
    assert "completes" not in score(assistant.model, assistant.forward, assistant.renderer, QUESTIONS)[0].to_json()


def test_completions_are_plain_prose(assistant, monkeypatch):
    seen = []
    monkeypatch.setattr("posttrain.eval.answers.generate",
                        lambda model, prompts, **how: seen.extend(prompts) or [])
    with pytest.raises(ValueError):  # the spy gives no answers back
        completed(assistant.model, assistant.renderer, QUESTIONS)
    assert [assistant.renderer.spec.decode(p) for p in seen] == ["the colour", "the colour"]


def test_layout_changes_nothing(assistant):
    rows = [Row("conversation", f"x:{i}", messages=[{"role": "user", "content": q.prompt * (i + 1)},
                                                    {"role": "assistant", "content": q.answer}])
            for i, q in enumerate(QUESTIONS * 5)]
    sequences = [s for made in assistant.renderer.render(rows) for s in made.sequences]
    whole, single = answer_loss(assistant.forward, sequences), answer_loss(assistant.forward, sequences, 1)
    assert whole.tokens == single.tokens and whole.loss == pytest.approx(single.loss, rel=1e-5)
