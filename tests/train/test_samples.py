"""Answers during training: from the very prompts of generation, at every validation, and through a resume."""

from __future__ import annotations

import json

import numpy as np
import pytest

import posttrain
from posttrain.app.assistant import load
from posttrain.core.config import make_settings
from posttrain.core.sequence import CONTENT, PROMPT, SCAFFOLD, STOP, TEXT, Row, Sequence
from posttrain.train.samples import PROMPTS, last_answer, make_sampler

pytestmark = pytest.mark.usefixtures("in_process")


def sequence(reasons, weights) -> Sequence:
    return Sequence(np.arange(len(reasons), dtype=np.int32), np.array(weights, np.float32),
                    np.array(reasons, np.uint8), "x:1")


@pytest.mark.parametrize(("reasons", "weights", "span"), [
    ([PROMPT, PROMPT, SCAFFOLD, CONTENT, STOP, PROMPT], [0, 0, 1, 1, 1, 0], (2, 5)),
    ([PROMPT, CONTENT, STOP, PROMPT, CONTENT, STOP], [0, 1, 1, 0, 1, 1], (4, 6)),
    ([PROMPT, CONTENT, STOP, PROMPT, CONTENT, STOP], [0, 1, 1, 0, 0, 0], (1, 3)),
    ([TEXT, TEXT, TEXT], [0, 1, 1], None), ([PROMPT, PROMPT], [0, 0], None)])
def test_the_last_trained_answer_is_found(reasons, weights, span):
    assert last_answer(sequence(reasons, weights)) == span


def test_the_prompt_is_that_of_generation(tiny_model):
    assistant = load(tiny_model, make_settings({"dtype": "float32", "device": "cpu"}))
    rows = [Row("conversation", f"x:{i}", messages=[{"role": "user", "content": f"say {w}"},
                                                    {"role": "assistant", "content": f"{w}."}])
            for i, w in enumerate(("red", "blue", "one", "two", "cat", "dog"))]
    sequences = [s for made in assistant.renderer.render(rows) for s in made.sequences]
    sampler = make_sampler(assistant.model, assistant.renderer.spec, sequences)
    assert sampler.origins == ["x:0", "x:1", "x:3", "x:4"] and len(sampler.prompts) == PROMPTS
    assert sampler.prompts[1] == assistant.renderer.prompt([{"role": "user", "content": "say blue"}])
    lines, facts = sampler()
    assert [x["reference"] for x in lines] == ["red.", "blue.", "two.", "cat."]
    assert facts == {"eval_stops": sum(x["stopped"] for x in lines) / 4}
    assert lines[0]["answer"] == assistant.chat("say red", max_new_tokens=16 + 2 * max(map(len, sampler.references)))
    assert make_sampler(None, None, []) is None


def test_every_validation_leaves_its_answers(tiny_model, rows, tmp_path):
    values = {"model": tiny_model, "data": str(rows), "batch_size": 8, "eval_split": 0.1, "eval_steps": 2,
              "max_steps": 4, "method": "full", "learning_rate": 3e-3, "dtype": "float32"}
    run = posttrain.sft(output_dir=tmp_path / "run", **values)
    lines = [json.loads(x) for x in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert [x["step"] for x in lines] == [0] * 4 + [2] * 4 + [4] * 4
    assert {"step", "row", "prompt", "reference", "answer", "stopped"} == set(lines[0])
    assert [m["step"] for m in run.metrics if "eval_stops" in m] == [2, 4]
    plain = posttrain.sft(output_dir=tmp_path / "plain", **{k: v for k, v in values.items() if k != "eval_steps"})
    assert [m["loss"] for m in run.metrics] == [m["loss"] for m in plain.metrics]  # sampling changes no training
