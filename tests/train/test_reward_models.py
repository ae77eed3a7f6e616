"""A reward model of its own, with a template of its own: what of an answer reaches it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import posttrain
from posttrain.core.errors import UserError
from posttrain.core.sequence import Row
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer
from posttrain.model.resolve import resolve_model
from posttrain.model.reward import open_scorer
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


def ids_of(spec, text: str) -> list[int]:
    return spec.encoder.ids(spec.encoder.encode([text])[0].ids).tolist()


def test_an_empty_answer_is_a_prompt_that_ends(spec):
    """It has a score, whatever stands beside it and however the template takes an empty message."""
    seen = []
    reward = ModelReward(lambda sequences: seen.extend(sequences) or [float(len(s)) for s in sequences],
                         Renderer(spec), "other")
    scores = reward([answer(spec, "red."), answer(spec, ""), answer(spec, "blue.", stopped=False), answer(spec, "")])
    prompt = reward.renderer.prompt([{"role": "user", "content": "say red"}])
    assert scores == [len(s) for s in seen] and seen[1].ids.tolist() == [*prompt, spec.stop_ids[0]]
    assert seen[1].weights.tolist() == [0] * len(prompt) + [1] and (seen[3].ids == seen[1].ids).all()
    assert seen[0].ids.tolist() == [*prompt, *ids_of(spec, "red."), spec.stop_ids[0]]
    assert seen[2].ids.tolist() == [*prompt, *ids_of(spec, "blue.")]


@pytest.mark.parametrize("name", ["chatml", "alpaca", "llama2", "plain"])
def test_an_answer_that_never_ended_has_no_stop(tiny_model, name):
    """Neither the stop token nor what the template writes around it; an answer of nothing is then the prompt alone."""
    spec, seen = load_tokenizer(str(tiny_model), chat_template=name), []
    reward = ModelReward(lambda sequences: seen.extend(sequences) or [0.0] * len(sequences), Renderer(spec), "other")
    reward([answer(spec, text, stopped) for stopped in (True, False) for text in ("red.", "")])
    prompt, ended = reward.renderer.prompt([{"role": "user", "content": "say red"}]), seen[0].ids.tolist()
    assert ended[-1] in spec.stop_ids and seen[1].ids.tolist() == [*prompt, spec.stop_ids[0]]
    assert seen[2].ids.tolist() == ended[:len(seen[2])] and seen[3].ids.tolist() == prompt
    assert not set(seen[2].ids[len(prompt):].tolist()) & set(spec.stop_ids)
    assert spec.decode(seen[2].ids[len(prompt):].tolist()).strip() == "red."


def test_an_answer_that_no_template_holds(spec):
    reward = ModelReward(None, Renderer(spec, max_length=8, overlong="drop"), "other")
    with pytest.raises(UserError) as e:
        reward([answer(spec, "red " * 20)])
    assert str(e.value).startswith("error: the reward model's template cannot render an answer\n"
                                   "  where:    reward: other\n  found:    longer than max_length (p:red ")


@pytest.fixture
def trained(tiny_model, tmp_path, in_process):
    """(verb, keys) -> a run of a few updates on the tiny model, and what it said."""
    (path := tmp_path / "preferences.jsonl").write_text("".join(
        json.dumps({"prompt": f"say {a}", "chosen": f"{a}.", "rejected": f"no {a}"}) + "\n"
        for a in ("red", "green", "blue", "one", "two", "three", "cat", "dog")))

    def train(verb, **keys):
        out = io.StringIO()
        asked = {"model": tiny_model, "data": path, "max_steps": 2, "batch_size": 8, "dtype": "float32",
                 "max_length": 160, "learning_rate": 1e-2, "console": Console(file=out, width=400)}
        return getattr(posttrain, verb)(**(asked | keys)), out.getvalue()
    return train


def test_a_reward_adapter_of_the_policys_template(trained, tmp_path):
    reward, _ = trained("reward", output_dir=tmp_path / "reward")
    _, said = trained("ppo", reward=str(reward.path), max_new_tokens=4, minibatches=1, output_dir=tmp_path / "ppo")
    assert f"reward: {reward.path}, an adapter on the policy's base\n" in said
    assert "one base, 3 adapters: actor, critic, reward\n" in said


def test_a_reward_adapter_of_another_template(trained, tmp_path):
    """It stands on the policy's base and yet is a model of its own: answers reach it as text, in its template."""
    reward, _ = trained("reward", chat_template="alpaca", output_dir=tmp_path / "reward")
    run, said = trained("ppo", reward=str(reward.path), max_new_tokens=12, minibatches=1, output_dir=tmp_path / "ppo")
    assert (f"reward: {reward.path}, a model of its own; it has a tokenizer or template of its own: answers reach it "
            "as text\n") in said and "one base, 2 adapters: actor, critic\n" in said
    ref = resolve_model(reward.path)
    spec, told = load_tokenizer(ref.tokenizer), [json.loads(s) for s in (run.path / "samples.jsonl").open()]
    read = [lay(Renderer(spec).prompt([{"role": "user", "content": s["prompt"]}]),
                [*ids_of(spec, s["answer"]), *spec.stop_ids[:s["stopped"]]], s["stopped"], s["origin"]) for s in told]
    assert "### Response:\n" in spec.decode(read[0].ids)
    own = open_scorer(ref, dtype="float32")(read)
    assert len(told) == 4 and [s["score"] for s in told] == pytest.approx(own, abs=1e-4) and len(set(own)) == 4
