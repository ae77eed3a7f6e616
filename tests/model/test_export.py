"""model/ loads in plain transformers and PEFT with the logits of the model that was trained."""

from __future__ import annotations

import json
import os
import shutil
import weakref
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import posttrain
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.model.policy import build_policy, open_model
from posttrain.model.resolve import resolve_model

pytestmark = pytest.mark.usefixtures("in_process")
IDS = torch.arange(3, 40)[None]


@pytest.fixture
def train(tiny_model, rows, tmp_path):
    def run(name="run", **values):
        asked = {"model": tiny_model, "data": str(rows), "max_steps": 4, "batch_size": 8, "dtype": "float32",
                 "learning_rate": 1e-2, "output_dir": tmp_path / name}
        return posttrain.sft(**(asked | values))
    return run


@pytest.fixture
def trained(monkeypatch):
    """The last model that was trained, as it stood in memory when it was written out."""
    seen = []

    def keep(folder, policy, *rest):
        path = real(folder, policy, *rest)
        seen.append(policy.model.eval())
        return path

    from posttrain.model.export import export_model as real
    monkeypatch.setattr("posttrain.train.session.export_model", keep)
    return seen


@torch.no_grad()
def logits(model, ids=IDS):
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(causal, "own_attention"):  # a trained model computes packs; here it is asked as transformers would
        causal.set_attn_implementation(causal.own_attention)
    return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("method", ["full", "lora"])
def test_plain_libraries_give_the_same_logits(train, trained, tiny_model, method):
    run = train(method=method)
    auto = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    loaded = logits(auto.from_pretrained(run.model_path))
    assert torch.equal(loaded, logits(trained[-1]))
    assert torch.equal(loaded, logits(posttrain.load(run, make_settings({"dtype": "float32"})).model))
    assert (loaded - logits(AutoModelForCausalLM.from_pretrained(tiny_model))).abs().max() > 1e-2


@pytest.mark.parametrize("method", ["full", "lora", pytest.param("qlora", marks=pytest.mark.skipif(
    not find_spec("bitsandbytes"), reason="pip install 'posttrain[qlora]'"))])
def test_in_two_bytes_the_answers_are_those_of_training(make_model, train, trained, tmp_path, method):
    base = tmp_path / "half"
    shutil.copytree(make_model("for_half"), base)
    AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(base)
    run = train(model=base, method=method, dtype="bfloat16")
    with safe_open(next(run.model_path.glob("*.safetensors")), "pt") as file:
        types = {file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118
    assert types == {torch.bfloat16 if method == "full" else torch.float32}  # the base's type; adapters whole
    served = open_model(resolve_model(run.path), dtype="bfloat16").model
    assert torch.equal(logits(served), logits(trained[-1]))
    rotary = [b for n, b in served.named_buffers() if "inv_freq" in n]
    assert rotary and all(b.dtype == torch.float32 for b in rotary)


def test_a_model_folder_is_on_the_disk_before_it_has_its_name(train, monkeypatch):
    """Every file, its folder, and then the name: a power cut leaves a whole model or none."""
    seen, rename = [], os.rename

    def name_it(old, new):
        seen.append(f"{Path(old).name} -> {Path(new).name}")
        rename(old, new)

    monkeypatch.setattr(os, "rename", name_it)
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append(os.readlink(f"/proc/self/fd/{handle}")))
    run = train(method="full")
    partial, named = run.path / ".model.partial", seen.index(".model.partial -> model")
    made = {str(partial / p.relative_to(run.model_path)) for p in run.model_path.rglob("*")}
    assert len(made) == 7 and made | {str(partial)} <= set(seen[:named]) and seen[named + 1] == str(run.path)


def test_what_lies_beside_the_weights(train, tiny_model):
    run = train(method="full", eval_split=0.1)
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False,
                                         add_generation_prompt=True)
    assert "hi" in text and tokenizer.get_vocab() == AutoTokenizer.from_pretrained(tiny_model).get_vocab()
    config = GenerationConfig.from_pretrained(run.model_path)
    assert config.eos_token_id == tokenizer.eos_token_id and config.pad_token_id == tokenizer.pad_token_id
    card = (run.model_path / "README.md").read_text()
    rows = run.ledger["rows"]
    for part in ("library_name: transformers", f"Fine-tuned from `{tiny_model}`", "| 144 | alpaca |", f"rows: {rows}",
                 "AutoModelForCausalLM.from_pretrained", "Chat template: plain", "Held-out loss: ",
                 "learning_rate: 0.01", "resume: false"):
        assert part in card, part


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_grown_vocabulary(make_model, train, trained, method, tied):
    base = make_model(f"snug{tied}", vocab_size=None, tie_word_embeddings=tied)
    run = train(model=base, chat_template="chatml", method=method)
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    new = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    old = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    size = len(old)
    assert new == [size, size + 1]
    assert GenerationConfig.from_pretrained(run.model_path).eos_token_id == [size + 1, tokenizer.eos_token_id]
    auto = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
    loaded = auto.from_pretrained(run.model_path)
    ids = torch.tensor([[size, 5, 6, size + 1, 7, size]])
    assert torch.equal(logits(loaded, ids), logits(trained[-1], ids))
    assert logits(loaded, ids).shape[-1] == size + 2
    into, out = (w.detach() for w in rows_of(trained[-1]))
    moved = (into[size:] - old.mean(0)).abs().amax(1), (out[size:] - out[:size].mean(0)).abs().amax(1)
    assert (moved[0] > 1e-3).all() and (moved[1] > 1e-3).all()  # the new rows were trained, in and out
    if method == "lora":
        assert torch.equal(into[:size], old)
        assert "The vocabulary grew: load it through AutoPeftModelForCausalLM" in (run.model_path / "README.md"
                                                                                  ).read_text()


def rows_of(model):
    """Input and output embedding with whatever PEFT puts over their rows."""
    found = []
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        adapter = getattr(module, "token_adapter", None)
        found.append(adapter.get_merged_weights(["default"]) if adapter is not None else module.weight)
    return found


def test_new_rows_have_wide_masters(make_model):
    base = make_model("wide", vocab_size=None)
    settings = make_settings({"dtype": "bfloat16"})
    size = json.loads((base / "config.json").read_text())["vocab_size"] + 2
    policy = build_policy(settings, resolve_model(base), vocab_size=size, new_tokens=[size - 2, size - 1], special={})
    assert f"embeddings grew by 2 to {size} rows for the chat template's tokens" in policy.notes
    kinds = {n: p.dtype for n, p in policy.model.named_parameters() if p.requires_grad}
    assert set(kinds.values()) == {torch.float32} and any("trainable_tokens" in n for n in kinds)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_pad_token_is_a_token_like_any_other(make_model, method):
    base = make_model(f"pad_{method}", vocab_size=None, pad_token_id=7, tie_word_embeddings=False)
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    policy = build_policy(make_settings({"dtype": "float32", "method": method}), resolve_model(base),
                          vocab_size=size + 1, new_tokens=[7, size], special={})
    policy.model(input_ids=torch.tensor([[3, 7, 9]]), labels=torch.tensor([[3, 5, 9]])).loss.backward()
    into = policy.model.get_input_embeddings()
    grad = into.weight.grad[7] if method == "full" else into.token_adapter.trainable_tokens_delta["default"].grad[0]
    assert grad.abs().max() > 0


def test_padded_rows_stay(make_model, train, trained):
    base = make_model("padded", vocab_size=512)
    for method in ("full", "lora"):
        run = train(method, model=base, chat_template="chatml", method=method)
        assert trained[-1].get_input_embeddings().weight.shape[0] == 512
        auto = AutoModelForCausalLM if method == "full" else AutoPeftModelForCausalLM
        assert torch.equal(logits(auto.from_pretrained(run.model_path)), logits(trained[-1]))


def test_an_adapter_is_continued(train, trained):
    first = train("first", method="lora", lora_r=4, lora_dropout=0.05, lora_target_modules=["q_proj", "v_proj"])
    second = train("second", model=first.path, save_steps=2)
    config = second.config
    assert (config["lora_r"], config["lora_dropout"], config["lora_target_modules"]) == (4, 0.05, ["q_proj", "v_proj"])
    saved = json.loads((second.model_path / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"].endswith("tiny") and saved["r"] == 4
    a, b = (load_file(run.model_path / "adapter_model.safetensors") for run in (first, second))
    assert a.keys() == b.keys() and any(not torch.equal(a[n], b[n]) for n in a)
    assert second.metrics[0]["loss"] < first.metrics[0]["loss"]
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(second.model_path)), logits(trained[-1]))
    open_model(resolve_model(second.checkpoints[-1]))
    with pytest.raises(UserError, match="the adapter that is continued has another shape") as e:
        train("third", model=first.path, lora_r=8)
    assert (e.value.where, e.value.found, e.value.expected) == ("lora_r", "8", "4")
    with pytest.raises(UserError, match="another shape") as e:
        train("third", model=first.path, lora_target_modules=["q_proj"])
    assert (e.value.found, e.value.expected) == ("q_proj", "q_proj, v_proj")


@pytest.mark.parametrize("grown", [False, True], ids=["plain", "grown"])
def test_full_on_an_adapter_merges_it_first(make_model, train, trained, capsys, grown):
    base = make_model(f"under{grown}", vocab_size=None)
    first = train("first", model=base, method="lora", chat_template="chatml" if grown else "auto")
    before = logits(trained[-1])
    second = train("second", model=first, method="full", learning_rate=1e-12)
    assert "was merged into its base before full fine-tuning" in capsys.readouterr().err
    assert (second.model_path / "config.json").is_file()
    after = logits(AutoModelForCausalLM.from_pretrained(second.model_path))
    assert after.shape == before.shape and torch.allclose(after, before, atol=1e-4)


def test_from_scratch(train, tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "model_type: qwen3\nvocab_size: 320\nhidden_size: 32\nintermediate_size: 64\nnum_hidden_layers: 1\n"
        "num_attention_heads: 2\nnum_key_value_heads: 1\nhead_dim: 16\ntie_word_embeddings: true\n")
    with pytest.raises(UserError, match="a model from scratch has no weights for adapters") as e:
        train("refused", model="builtin", model_config=tmp_path / "tiny.yaml")
    assert e.value.fix == "set method: full"
    run = train(model="builtin", model_config=tmp_path / "tiny.yaml", method="full", dtype="bfloat16", save_steps=2)
    model, tokenizer = (auto.from_pretrained(run.model_path) for auto in (AutoModelForCausalLM, AutoTokenizer))
    assert model.dtype == torch.bfloat16 and model.config.vocab_size == 320 >= len(tokenizer)
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert "Trained from scratch" in (run.model_path / "README.md").read_text()
    assert isinstance(posttrain.load(run.checkpoints[-1]).chat("hi", max_new_tokens=2), str)
    shutil.rmtree(run.model_path)  # moved, interrupted, and its architecture file gone: all that it needs is its own
    moved = shutil.move(run.path, tmp_path / "moved")
    (tmp_path / "tiny.yaml").unlink()
    (moved / "run.json").unlink()
    assert isinstance(posttrain.load(moved).chat("hi", max_new_tokens=2), str)
    assert posttrain.sft(output_dir=moved, resume=True).status["status"] == "finished"


def test_anything_that_a_run_made_can_be_named(train, tmp_path):
    run = train(method="lora", save_steps=2)
    names = [run.path, run.checkpoints[-1], run.model_path]
    for name in names:
        assert isinstance(posttrain.load(name).chat("say red", max_new_tokens=3), str)
    whole, adapter = (logits(open_model(resolve_model(n), dtype="float32").model) for n in (run.path, run.model_path))
    assert torch.equal(whole, adapter)


def test_a_checkpoint_is_the_model_of_that_update(train, trained):
    run = train(save_steps=4, max_steps=5, method="lora", lr_scheduler_type="constant", warmup_ratio=0.0)
    short = train("short", max_steps=4, method="lora", lr_scheduler_type="constant", warmup_ratio=0.0)
    at_four, four = (logits(open_model(resolve_model(p), dtype="float32").model) for p in (
        run.path / "checkpoints" / "4", short.path))
    assert torch.equal(at_four, four)


def test_pickled_weights_are_refused(tiny_model, train, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="pickled weights only, and pickles can run code") as e:
        train(model=folder)
    assert e.value.found == "pytorch_model.bin" and "save_pretrained" in e.value.fix
    assert not (tmp_path / "run").exists()


def test_a_folder_without_tokenizer(tiny_model, train, tmp_path):
    folder = tmp_path / "mute"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("tokenizer*"))
    with pytest.raises(UserError, match="the folder holds no tokenizer") as e:
        train(model=folder)
    assert "config.json" in e.value.found and "with tokenizer" in e.value.fix
    assert train(model=folder, tokenizer=str(tiny_model)).status["status"] == "finished"


def test_an_unknown_target_names_the_nearest(train):
    with pytest.raises(UserError, match="a LoRA target matches no layer") as e:
        train(lora_target_modules=["q_prj"])
    assert (e.value.where, e.value.found) == ("lora_target_modules", "q_prj")
    assert "q_proj" in e.value.fix and "down_proj" in e.value.expected


def test_sampling_values_of_a_greedy_base_do_not_stop_the_export(make_model, train):
    base = make_model("odd_generation")
    (base / "generation_config.json").write_text(json.dumps({"do_sample": False, "min_p": 0.1, "top_k": 20}))
    run = train(model=base)
    assert GenerationConfig.from_pretrained(run.model_path).min_p is None
    (base / "generation_config.json").write_text(json.dumps({"num_beams": 1, "early_stopping": True}))
    saved = GenerationConfig.from_pretrained(train("beams", model=base).model_path)
    assert not saved.early_stopping and saved.eos_token_id == GenerationConfig.from_pretrained(
        run.model_path).eos_token_id is not None


def test_export_makes_masters_one_at_a_time(make_model, train, tmp_path, monkeypatch):
    from posttrain.train.optim import MasterAdamW

    base = tmp_path / "half"
    shutil.copytree(make_model("for_masters"), base)
    AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(base)
    wide, made = MasterAdamW.master, []

    def master(self, i):
        assert not any(gone() is not None for gone in made), "two masters at once"
        one = wide(self, i)
        made.append(weakref.ref(one))
        return one

    monkeypatch.setattr(MasterAdamW, "master", master)
    assert train(model=base, method="full", dtype="bfloat16").status["status"] == "finished"
    assert len(made) > 10
