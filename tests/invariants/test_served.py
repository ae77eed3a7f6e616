"""Trained = served: what precedes a trained token is what chat sends, and answers stop where training ended them."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import posttrain
from posttrain.app.assistant import load
from posttrain.core.config import make_settings
from posttrain.core.sequence import STOP
from posttrain.data.read import open_sources
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer
from posttrain.model.sample import generate


def real_rows(shared_data, name: str, count: int) -> list:
    (source,) = open_sources([str(shared_data / name)], columns={})
    return [source.row(i) for i in range(min(count, len(source)))]


@pytest.mark.parametrize(("tokenizer", "name"), [
    ("tokenizers/minimind", "stanford_alpaca/alpaca_data.json.gz"),
    ("tokenizers/minimind", "llamafactory_demo/alpaca_zh_demo.json"),
    ("tokenizers/minimind", "llamafactory_demo/glaive_toolcall_en_demo.json"),
    ("tokenizers/smollm2_like", "stanford_alpaca/alpaca_data.json.gz"),
    ("qwen3_tokenizer", "llamafactory_demo/glaive_toolcall_en_demo.json")])
def test_what_is_trained_is_what_chat_sends(shared_data, tmp_path, tokenizer, name):
    """100 rows, every trained turn, through the tokenizer that a run saves and chat loads."""
    spec = load_tokenizer(shared_data / tokenizer)
    spec.enable_thinking = False  # as a run over rows without reasoning decides
    spec.save(tmp_path / "model")
    served = Renderer(load_tokenizer(tmp_path / "model"))
    assert served.stop_ids == spec.stop_ids
    trainer = Renderer(spec, enable_thinking=False, max_length=100_000)
    rows, seen = real_rows(shared_data, name, 100), 0
    for row, made in zip(rows, trainer.render(rows), strict=True):
        turns = [i for i, m in enumerate(row.messages) if m["role"] == "assistant"]
        spans = [(s, at) for s in made.sequences for at in starts(s.weights)]
        assert len(spans) == len(turns) or made.dropped, row.origin
        for (sequence, at), turn in zip(spans, turns, strict=False):
            sent = served.prompt(row.messages[:turn], row.tools)
            assert sequence.ids[:at].tolist() == sent, row.origin
            end = at + int((sequence.weights[at:] == 0).argmax() or len(sequence) - at)
            assert sequence.ids[end - 1] in served.stop_ids and sequence.reasons[end - 1] == STOP, row.origin
            seen += 1
    assert seen >= len(rows) * 0.95


def starts(weights) -> list[int]:
    """Where trained stretches begin."""
    on = weights != 0
    return [i for i in range(len(on)) if on[i] and (i == 0 or not on[i - 1])]


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("template", ["auto", "chatml"])
def test_it_stops_at_the_ids_that_the_model_folder_records(make_model, tmp_path, template):
    base = make_model(f"stops_{template}", vocab_size=None)
    path = tmp_path / "toy.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in (
        ("red", "green"), ("one", "two two"), ("cat", "dog dog dog"), ("sun", "moon sky"))))
    run = posttrain.sft(model=base, data=path, chat_template=template, method="full", learning_rate=3e-3,
                        max_steps=40, batch_size=4, dtype="float32", output_dir=tmp_path / "run")
    assistant = load(run.path, make_settings({"dtype": "float32"}))
    recorded = GenerationConfig.from_pretrained(run.model_path).eos_token_id
    recorded = recorded if isinstance(recorded, list) else [recorded]
    assert assistant.renderer.stop_ids == recorded
    answers = assistant.answers([[{"role": "user", "content": p}] for p in ("red", "one", "cat")], max_new_tokens=12)
    assert [a.text for a in answers] == ["green", "two two", "dog dog dog"]
    assert all(a.stopped and a.ids[-1] == recorded[0] for a in answers)


@pytest.mark.usefixtures("in_process")
def test_plain_transformers_gives_the_same_answer(make_model, tmp_path):
    """`apply_chat_template` and `generate` on the folder alone: the ids, the answer and the stop are chat's."""
    base = make_model("plain_generate")
    path = tmp_path / "toy.jsonl"
    path.write_text(json.dumps({"prompt": "red", "completion": "green blue."}) + "\n")
    run = posttrain.sft(model=base, data=path, chat_template="chatml", method="full", learning_rate=3e-3, max_steps=30,
                        batch_size=1, dtype="float32", output_dir=tmp_path / "run")
    model, tokenizer = (auto.from_pretrained(run.model_path) for auto in (AutoModelForCausalLM, AutoTokenizer))
    talk = [{"role": "user", "content": "red"}]
    ids = tokenizer.apply_chat_template(talk, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assistant = load(run.path, make_settings({"dtype": "float32"}))
    assert ids["input_ids"][0].tolist() == assistant.renderer.prompt(talk)
    with torch.no_grad():
        made = model.generate(**ids, max_new_tokens=12)[0, ids["input_ids"].shape[1]:].tolist()
    ours = generate(assistant.model, [assistant.renderer.prompt(talk)], max_new_tokens=12,
                    stop_ids=assistant.renderer.stop_ids)[0]
    assert made == ours.ids and ours.stopped
    assert tokenizer.decode(made, skip_special_tokens=True) == "green blue."
