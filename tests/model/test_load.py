"""What loading a model refuses: weights that transformers or PEFT would make up, and folders that are broken."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.model.adapters import continued_shape
from posttrain.model.load import table_of_positions
from posttrain.model.policy import build_policy, open_model
from posttrain.model.resolve import resolve_model


@pytest.fixture
def base(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "base")


@pytest.fixture
def adapter(base, tmp_path):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def refused(folder) -> UserError:
    with pytest.raises(UserError) as e:
        open_model(resolve_model(folder), dtype="float32")
    return e.value


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_weights_are_never_made_up(base):
    change(base / "config.json", num_hidden_layers=3, layer_types=["full_attention"] * 3)
    error = refused(base)
    assert error.message == "the model's files lack weights that its architecture needs"
    assert "no model.layers.2." in error.found and "more" in error.found and "config.json" in error.fix
    change(base / "config.json", num_hidden_layers=2, layer_types=["full_attention"] * 2, intermediate_size=64)
    error = refused(base)
    assert error.message == "the weights have other shapes than the config says"
    assert ("mlp.down_proj.weight [64, 128]" in error.found, error.expected) == (True, "[64, 64]")


def test_a_quantized_model_names_its_package(base):
    change(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    error = refused(base)
    assert error.message == "the model needs a package that is not installed" and "optimum" in error.found


@pytest.mark.parametrize(("name", "text", "said"), [
    ("config.json", "{not json", "config.json is not valid JSON"),
    ("config.json", "{}", "transformers cannot build this model"),
    ("model.safetensors", "short", "the model folder cannot be read")])
def test_a_damaged_folder(base, name, text, said):
    (base / name).write_text(text)
    error = refused(base)
    assert error.message == said and error.where.startswith(str(base)) and (error.fix or error.expected)


@pytest.mark.parametrize(("text", "said"), [
    ("{bad", "adapter_config.json is not valid JSON"), ("[]", "adapter_config.json holds no keys"),
    ("{}", "the adapter does not say which base it belongs to"),
    ('{"base_model_name_or_path": "./gone"}', "the base of this adapter is not there"),
    ('{"base_model_name_or_path": "ADAPTER"}', "the base of this adapter is no whole model")])
def test_a_damaged_adapter_config(adapter, text, said):
    (adapter / "adapter_config.json").write_text(text.replace("ADAPTER", str(adapter)))
    error = refused(adapter)
    assert error.message == said and error.where == str(adapter / "adapter_config.json")


def test_an_adapter_that_does_not_fit(adapter, base):
    held = load_file(adapter / "adapter_model.safetensors")
    save_file({n: t for n, t in held.items() if "layers.1" not in n}, adapter / "adapter_model.safetensors")
    error = refused(adapter)
    assert error.message == "the adapter does not fit its base" and "layers.1" in error.found
    save_file({n: torch.zeros(5, 5) for n in held}, adapter / "adapter_model.safetensors")
    assert "size mismatch" in refused(adapter).found
    (adapter / "adapter_model.safetensors").write_bytes(b"short")
    assert refused(adapter).message == "the adapter does not fit its base"
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    assert refused(adapter).message == "the adapter has pickled weights only, and pickles can run code"
    (adapter / "adapter_model.bin").unlink()
    assert refused(adapter).message == "the adapter has no weights"


def test_a_continued_adapter_must_be_lora_and_know_its_tokens(adapter, base, tmp_path):
    ref = resolve_model(adapter)
    with pytest.raises(UserError, match="an adapter that is continued cannot learn new tokens") as e:
        build_policy(make_settings({"chat_template": "chatml", "dtype": "float32"}), ref, vocab_size=514,
                     new_tokens=[512, 513], special={})
    assert e.value.found == "2 tokens of chatml are not in its vocabulary" and "method: full" in e.value.fix
    other = get_peft_model(AutoModelForCausalLM.from_pretrained(base), IA3Config(
        target_modules=["k_proj"], feedforward_modules=[], task_type="CAUSAL_LM"))
    other.save_pretrained(tmp_path / "ia3")
    with pytest.raises(UserError, match="only a LoRA adapter can be trained further") as e:
        continued_shape(make_settings({}), tmp_path / "ia3")
    assert e.value.found == "IA3"


def test_rows_longer_than_a_table_of_positions(tmp_path, base):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=16, n_embd=8, n_layer=1, n_head=1))
    model.save_pretrained(tmp_path / "gpt2")
    assert table_of_positions(model) == 16
    assert table_of_positions(AutoModelForCausalLM.from_pretrained(base)) is None

    def build(length):
        return build_policy(make_settings({"dtype": "float32", "max_length": length}), resolve_model(tmp_path / "gpt2"),
                            vocab_size=90, new_tokens=[], special={})
    with pytest.raises(UserError, match="a row may be longer than the model's positions") as e:
        build(17)
    assert (e.value.where, e.value.expected, e.value.fix) == ("max_length", "at most 16", "set max_length: 16")
    build(16)
