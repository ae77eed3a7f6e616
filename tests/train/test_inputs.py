"""What a run reads beside its data decides about its numbers: a changed file is shown by name at the resume."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import posttrain
from posttrain.core.config import make_settings
from posttrain.core.errors import SettingsError
from posttrain.data.templates import builtin_template
from posttrain.data.tokenizer import load_tokenizer
from posttrain.model.resolve import resolve_model
from posttrain.train.inputs import inputs_of

pytestmark = pytest.mark.usefixtures("in_process")
WORDS = ("red", "green", "blue", "one")
PLAIN = builtin_template("plain", adds_bos=False)


def cut(run) -> str:
    """The run as it lay on disk after its last checkpoint."""
    shutil.rmtree(run.model_path)
    (run.path / "run.json").unlink()
    return str(run.path)


def changed(verb, folder) -> list[str]:
    """The names of what a plain resume says has changed."""
    with pytest.raises(SettingsError) as e:
        verb(output_dir=folder, resume=True)
    assert all("changed since the checkpoint" in error.message for error in e.value.errors)
    return [error.where for error in e.value.errors]


def scale(path) -> None:
    """Other weights in a file of weights."""
    save_file({name: t * 1.01 for name, t in load_file(path).items()}, path, metadata={"format": "pt"})


def test_a_template_and_a_tokenizer(tiny_model, rows, tmp_path, capsys):
    template, tokenizer = tmp_path / "own.jinja", tmp_path / "tokenizer"
    template.write_text(PLAIN)
    shutil.copytree(tiny_model, tokenizer)
    run = posttrain.sft(model=tiny_model, data=rows, max_steps=3, batch_size=8, dtype="float32", save_steps=2,
                        chat_template=str(template), tokenizer=str(tokenizer), output_dir=tmp_path / "run")
    folder = cut(run)
    template.write_text(PLAIN.replace("User:", "Human:"))
    assert changed(posttrain.sft, folder) == ["chat_template"]
    template.write_text(PLAIN)
    config = json.loads((tokenizer / "tokenizer.json").read_text())
    merges = config["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (tokenizer / "tokenizer.json").write_text(json.dumps(config))
    assert changed(posttrain.sft, folder) == ["tokenizer"]
    capsys.readouterr()
    posttrain.sft(output_dir=folder, resume=True, allow_changes=True)
    assert "what this key names changed since the checkpoint: tokenizer is sha256 " in capsys.readouterr().err


def test_a_reward_function(tiny_model, fn):
    def found(reward):
        return inputs_of(make_settings({"objective": "grpo", "reward": reward}), resolve_model(str(tiny_model)), spec,
                         held_to_start=True, scored_by_model=False).get("reward")

    spec = load_tokenizer(str(tiny_model))
    before = found(f"{fn}:score")
    assert before == found(str(fn)) and found("exact") is None and found("regex:a.py") is None
    fn.write_text(fn.read_text().replace("0.1", "0.2"))
    assert found(f"{fn}:score") != before


def test_an_adapter_that_is_the_reference_too(tiny_model, rows, tmp_path):
    keys = {"dtype": "float32", "batch_size": 4, "max_steps": 2, "save_steps": 1}
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"prompt": f"say {a}", "chosen": f"{a} {b}.", "rejected": b}) + "\n"
                             for a in WORDS for b in WORDS if a != b))
    start = posttrain.sft(model=tiny_model, data=rows, output_dir=tmp_path / "sft", **keys)
    further = posttrain.sft(model=start.path, data=rows, output_dir=tmp_path / "further", **keys)
    held = posttrain.dpo(model=start.path, data=str(pairs), output_dir=tmp_path / "dpo", **keys)
    scale(start.model_path / "adapter_model.safetensors")
    assert changed(posttrain.dpo, cut(held)) == ["model"]
    assert posttrain.sft(output_dir=cut(further), resume=True).status["step"] == 2  # which has all in its checkpoint


def test_a_shape_file_is_fixed(tiny_model, rows, tmp_path):
    shape = tmp_path / "shape.yaml"
    shape.write_text("model_type: qwen3\nvocab_size: 320\nhidden_size: 32\nintermediate_size: 64\n"
                     "num_hidden_layers: 1\n"
                     "head_dim: 16\nnum_attention_heads: 2\nnum_key_value_heads: 1\ntie_word_embeddings: true\n")
    run = posttrain.sft(model_config=str(shape), data=rows, max_steps=3, batch_size=8, dtype="float32", save_steps=2,
                        method="full", output_dir=tmp_path / "run")
    weights, folder = (run.model_path / "model.safetensors").read_bytes(), cut(run)
    again = posttrain.sft(output_dir=folder, resume=True)
    assert (again.model_path / "model.safetensors").read_bytes() == weights  # the tokenizer, saved, is the same one
    folder = cut(again)
    (run.path / "architecture.yaml").write_text(shape.read_text().replace("hidden_size: 32", "hidden_size: 64"))
    with pytest.raises(SettingsError) as e:
        posttrain.sft(output_dir=folder, resume=True, allow_changes=True)
    assert [error.where for error in e.value.errors] == ["model_config"] and "allow_changes" not in str(e.value)


@pytest.mark.parametrize("part", ["adapter", "lora_alpha", "base", "tokenizer", "nothing"])
def test_a_reward_model(tiny_model, tmp_path, part):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_model, base)
    adapter.mkdir()
    save_file(load_file(base / "model.safetensors"), adapter / "adapter_model.safetensors")
    config = {"base_model_name_or_path": str(base), "task_type": "SEQ_CLS", "lora_alpha": 32}

    def found():
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        return inputs_of(make_settings({"objective": "ppo", "reward": str(adapter)}), resolve_model(str(tiny_model)),
                         spec, held_to_start=True, scored_by_model=True)

    spec = load_tokenizer(str(tiny_model))
    before = found()
    if part in ("adapter", "base"):
        scale(tmp_path / part / ("model.safetensors" if part == "base" else "adapter_model.safetensors"))
    elif part == "lora_alpha":
        config["lora_alpha"] = 16
    elif part == "tokenizer":
        (base / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + "\n")
    else:
        base.rename(tmp_path / "moved")
        config["base_model_name_or_path"] = str(tmp_path / "moved")
    assert before.keys() == {"chat_template", "tokenizer", "reward"} and (found() == before) == (part == "nothing")
