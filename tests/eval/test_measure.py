"""Losses by a float64 hand computation, bytes that no tokenizer decides, figures and reasons."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.app.assistant import load
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.core.sequence import Row
from posttrain.eval.answers import Answer
from posttrain.eval.figures import ANSWERS, LOSS, changed
from posttrain.eval.measure import (
    NO_ANSWERS,
    NO_LOGPROBS,
    Measured,
    RowLoss,
    figures,
    measure,
    row_losses,
)
from posttrain.eval.overlap import Overlap
from posttrain.eval.verdict import forgetting, judge


def talk(*turns: str, origin: str = "x:1") -> Row:
    roles = ("user", "assistant")
    return Row("conversation", origin, messages=[{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)])


ROWS = [talk("say red", "red."), talk("say blue then red", "blue red.", "again", " blue red. "),
        talk("hi", "你好 dog."), Row("text", "y:1", text="the sun and the moon")]


@pytest.fixture(scope="module")
def assistant(tiny_model):
    made = load(tiny_model, make_settings({"dtype": "float32", "device": "cpu"}))
    made.renderer.overlong, made.renderer.max_length = "drop", 64
    return made


def test_perplexity_is_the_hand_computation(assistant, tiny_model):
    losses, dropped = row_losses(assistant.forward, assistant.renderer, ROWS, 4096)
    assert not dropped
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float64, attn_implementation="eager")
    nats = tokens = 0.0
    for made in assistant.renderer.render(ROWS):
        for s in made.sequences:
            with torch.no_grad():
                logp = model(torch.tensor(s.ids[None].astype("int64"))).logits[0].double().log_softmax(-1)
            for t in range(1, len(s)):
                if s.weights[t]:
                    nats, tokens = nats - logp[t - 1, s.ids[t]].item(), tokens + 1
    found = figures(Measured("m", "", losses, {i: Answer("", [], True) for i in range(3)}), ROWS, [0, 1, 2, 3], None)
    assert found["perplexity"].value == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert found["answer_loss"].value == pytest.approx(nats / tokens, rel=1e-5)
    assert sum(loss.tokens for loss in losses.values()) == tokens
    size = len("red.") + 2 * len("blue red.") + len("你好 dog.".encode()) + len(ROWS[3].text)
    assert found["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_stops_are_among_the_tokens(assistant):
    losses, _ = row_losses(assistant.forward, assistant.renderer, ROWS[:1], 4096)
    encoded = assistant.renderer.encoder.encode([" red."])[0].ids
    assert losses[0].tokens == len(encoded) + 1


def test_layout_changes_nothing(assistant):
    one, other = (row_losses(assistant.forward, assistant.renderer, ROWS * 3, size)[0] for size in (4096, 1))
    assert [v.nats for v in one.values()] == pytest.approx([v.nats for v in other.values()], rel=1e-5)


def test_rows_too_long_are_dropped_for_every_model(assistant):
    rows = [*ROWS[:2], talk("say red", "red " * 99)]
    made = measure(assistant, rows, pack_tokens=4096, max_new_tokens=4)
    assert set(made.losses) == set(made.answers) == {0, 1} and "max_length" in made.dropped[2]
    other = Measured("http://x", "", None, {i: Answer("red.", [], True) for i in range(3)})
    verdict = judge([other, made], rows, seed=1)
    assert verdict.result["rows"] == {"read": 3, "used": 2, "with_answers": 2, "dropped": {made.dropped[2]: 1}}
    base, mine = verdict.result["models"]
    assert all(base[name] == {"value": None, "low": None, "high": None, "reason": NO_LOGPROBS} for name in LOSS)
    assert "difference" in mine["exact_match"] and "difference" not in mine["perplexity"]
    assert base["exact_match"]["value"] == 0.5 and mine["perplexity"]["low"] <= mine["perplexity"]["value"]
    assert len(changed(verdict.answers)) == 2 and verdict.answers[0]["reference"] == "red."
    with pytest.raises(UserError, match="no row can be judged") as caught:
        judge([Measured("m", "", {}, {}, {0: "longer than max_length"})], rows[:1])
    assert caught.value.fix == "raise max_length"
    with pytest.raises(UserError, match="no row can be judged") as caught:
        judge([Measured("m", "", {}, {}, {0: "empty answer"})], rows[:1])
    assert caught.value.found == "1 empty answer" and caught.value.fix.startswith("look at the rows")


def test_the_answer_is_asked_after_all_before_it(assistant, monkeypatch):
    seen = []
    monkeypatch.setattr("posttrain.eval.answers.generate", lambda model, prompts, **how: seen.extend(prompts) or [])
    with pytest.raises(ValueError):  # the spy gives no answers back
        measure(assistant, ROWS[1:2], pack_tokens=64, max_new_tokens=4, system="be brief")
    text = assistant.renderer.spec.decode(seen[0])
    assert text.count("blue red.") == 1 and text.rstrip().endswith("Assistant:") and "be brief" in text


def test_figures_of_known_answers():
    rows = [talk("q", "one two three four"), talk("q", "five")]
    said = {0: Answer("<think>\nso\n</think>\n\none two three four", [], True), 1: Answer("ha " * 20, [], False)}
    found = figures(Measured("m", "", {0: RowLoss(2.0, 4, 10), 1: RowLoss(4.0, 2, 10)}, said), rows, [0, 1], None)
    values = {n: t.value for n, t in found.items() if not isinstance(t, str)}
    assert values["perplexity"] == pytest.approx(math.e) and values["answer_loss"] == 1.0
    assert (values["exact_match"], values["stops"], values["repeats"]) == (0.5, 0.5, 0.5)
    assert values["length"] == (18 + 59) / 2 and values["distinct_1"] == pytest.approx(5 / 24) and "bleu" not in found
    assert values["bits_per_byte"] == pytest.approx(6 / math.log(2) / 20)


def test_text_rows_have_no_answers():
    rows = [Row("text", "t:1", text="abc")]
    found = figures(Measured("m", "", {0: RowLoss(1.0, 2, 3)}), rows, [0], Overlap("latin"))
    assert all(found[name] == NO_ANSWERS for name in ANSWERS)
    assert found["perplexity"].value == pytest.approx(math.exp(.5))


def test_the_gate_is_about_what_got_worse():
    def model(name, perplexity, exact):
        return {"model": name, "perplexity": {"value": perplexity}, "exact_match": {"value": exact}}

    result = {"models": [model("a", 10.0, 0.5), model("b", 10.9, 0.6), model("c", 9.0, 0.4)]}
    found = {(c["model"], c["figure"]): (round(c["drop"], 6), c["passes"]) for c in forgetting(result, 0.1)}
    assert found == {("b", "perplexity"): (0.09, True), ("b", "exact_match"): (0.0, True),
                     ("c", "perplexity"): (0.0, True), ("c", "exact_match"): (0.2, False)}
