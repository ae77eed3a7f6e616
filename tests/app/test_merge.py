"""`posttrain merge`: one plain folder that is the model which was trained, or none."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel

import posttrain
from posttrain.app import merge as verb
from posttrain.app.cli import main
from posttrain.app.merge import merge
from posttrain.app.reload import BOUND, check, fixed_questions
from posttrain.core.errors import UserError
from posttrain.model import merge as arithmetic
from posttrain.model.policy import open_model
from posttrain.model.resolve import resolve_model

pytest.importorskip("bitsandbytes", reason="pip install 'posttrain[qlora]'")
pytestmark = pytest.mark.usefixtures("in_process")

METHODS = {
    "lora": {"method": "lora"}, "rslora": {"method": "lora", "use_rslora": True},
    "dora": {"method": "lora", "use_dora": True}, "qlora": {"method": "qlora"},
    "qlora with dora": {"method": "qlora", "use_dora": True}, "grown": {"method": "lora", "chat_template": "chatml"},
    "qlora grown": {"method": "qlora", "chat_template": "chatml"}}
# Largest |Δlogit| in float32 as a share of the largest |logit|, for every method; docs/memory.md has them.
STATED = 5e-6


@pytest.fixture
def here(monkeypatch):
    """The check in this process: four seconds less. One test below starts the fresh one."""
    monkeypatch.setattr(verb, "_fresh", lambda asked, folder: check(**asked))


@pytest.fixture
def half(make_model, tmp_path):
    """A base stored in bf16, whose vocabulary has no row to spare."""
    def make(name="half", **shape):
        base = shutil.copytree(make_model(name, vocab_size=None, **shape), tmp_path / name)
        AutoModelForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(base)
        return base
    return make


@pytest.fixture
def train(rows, tmp_path):
    def run(base, name="run", **values):
        return posttrain.sft(**({"model": base, "data": rows, "max_steps": 4, "batch_size": 8, "dtype": "bfloat16",
                                 "learning_rate": 1e-2, "output_dir": tmp_path / name} | values))
    return run


@torch.no_grad()
def logits(model, ids):
    return model.eval()(input_ids=ids).logits


@pytest.mark.parametrize("name", ["lora", "dora", "qlora", "qlora grown"])  # all of them below, among the slow ones
def test_the_merged_folder_is_the_model(half, train, here, name):
    run = train(half(), **METHODS[name])
    folder, found = merge(run.path)
    assert folder == run.path / "merged" and set(found) == {"float32", "bfloat16"}
    exact, shipped = found["float32"], found["bfloat16"]
    assert exact["same"] == exact["prompts"] == 20 and exact["positions"] > 100
    assert 0 < exact["largest"] <= STATED * exact["scale"] and exact["holds"]
    assert exact["largest"] < shipped["largest"] < 0.05 * shipped["scale"]
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "README.md"} <= names
    assert not any("adapter" in n or n == "base.json" for n in names) and not list(run.path.glob(".*"))
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.dtype == torch.bfloat16 and not hasattr(plain.config, "quantization_config")
    size = len(AutoTokenizer.from_pretrained(folder))
    ids = torch.arange(size - 20, size)[None]
    trained = logits(open_model(resolve_model(run.path), dtype="float32").model, ids)
    assert trained.shape[-1] == plain.get_input_embeddings().weight.shape[0] >= size
    assert (logits(plain.float(), ids) - trained).abs().max() < 0.05 * trained.abs().max()
    assert GenerationConfig.from_pretrained(folder).eos_token_id == GenerationConfig.from_pretrained(
        run.model_path).eos_token_id
    card = (folder / "README.md").read_text()
    assert "An adapter merged into `half`" in card and "20 of 20 greedy answers the same" in card


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_untied_rows_and_a_base_in_float32(make_model, train, here, method):
    base = make_model(f"wide_{method}", vocab_size=None, tie_word_embeddings=False)
    folder, found = merge(train(base, method=method, chat_template="chatml", dtype="float32").path)
    assert set(found) == {"float32"} and found["float32"]["same"] == 20
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32


def test_turned_layers(tiny_model, train, here, tmp_path):
    """GPT-2 holds its matrices the other way round; packing turns them, merging turns them back."""
    base = shutil.copytree(tiny_model, tmp_path / "gpt2")
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=512, n_positions=256, n_embd=64, n_layer=2, n_head=4, initializer_range=0.1,
                               bos_token_id=0, eos_token_id=0)).save_pretrained(base)
    for method in ("lora", "qlora"):
        _, found = merge(train(base, method, method=method, dtype="float32", max_length=256).path)
        assert found["float32"]["same"] == 20 and found["float32"]["largest"] <= STATED * found["float32"]["scale"]


def test_a_fresh_process_checks_it(half, train, tmp_path, capsys):
    run = train(half(), method="qlora", save_steps=2)
    output = tmp_path / "out"
    assert main(["merge", str(run.path), "--output", str(output), "--json"]) == 0
    out = capsys.readouterr()
    told = json.loads(out.out)
    assert told["model"] == str(output) and told["checks"]["float32"]["same"] == 20
    assert "weights, shipped in bfloat16, the type of the base" in out.err and f"model: {output}" in out.err
    assert "float32, beside base and adapter in float32: largest |Δlogit|" in out.err
    assert posttrain.load(output).chat("say red then blue", max_new_tokens=3)
    assert main(["merge", str(run.path), "--output", str(output)]) == 2
    assert "the output folder is in use" in capsys.readouterr().err


def test_a_folder_that_does_not_load_again(half, train, monkeypatch):
    run = train(half())
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nOSError: half of the weights\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(UserError, match="the merged folder could not be loaded again") as e:
        merge(run.path)
    assert e.value.found == "OSError: half of the weights" and "posttrain chat" in e.value.fix
    assert not (run.path / "merged").exists() and not list(run.path.glob(".*"))


def test_a_checkpoint_or_an_adapter_alone(half, train, here, tmp_path):
    run = train(half(), save_steps=2, chat_template="chatml")
    folder, found = merge(run.checkpoints[0], output=tmp_path / "early")
    assert folder == tmp_path / "early" and found["float32"]["same"] == 20
    moved = shutil.copytree(run.model_path, tmp_path / "moved")
    assert merge(moved)[0] == tmp_path / "moved-merged"
    a, b = (AutoModelForCausalLM.from_pretrained(p) for p in (folder, tmp_path / "moved-merged"))
    assert any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_wrong_merge_gets_no_name(half, train, here, monkeypatch):
    run = train(half())
    real = arithmetic.merged_policy

    def wrong(*args, **kwargs):
        policy = real(*args, **kwargs)
        with torch.no_grad():
            policy.model.model.layers[1].mlp.down_proj.weight.mul_(1.01)
        return policy

    monkeypatch.setattr(arithmetic, "merged_policy", wrong)
    with pytest.raises(UserError, match="the merged weights are not the model that was trained") as e:
        merge(run.path)
    assert "largest |Δlogit|" in e.value.found and "every answer the same" in e.value.expected
    assert not (run.path / "merged").exists() and not list(run.path.glob(".*"))


def test_what_cannot_be_merged(half, train, here, tiny_model):
    whole = train(half(), "whole", method="full", save_steps=2)
    for name in (whole.path, tiny_model):
        with pytest.raises(UserError, match="there is nothing to merge: these are whole weights") as e:
            merge(name)
        assert e.value.fix.startswith("use ") and e.value.fix.endswith(" as it is")
    with pytest.raises(UserError, match="there is nothing to merge") as e:
        merge(whole.checkpoints[0])
    assert e.value.fix == "finish the run: its model folder will be whole"
    base = half("other")
    run = train(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.model.norm.weight.mul_(1.5)
    model.save_pretrained(base)
    with pytest.raises(UserError, match="these weights are not the base that the adapter was trained on"):
        merge(run.path)
    assert not (run.path / "merged").exists() and not list(run.path.glob(".*"))


def test_a_reward_model_is_not_merged(half, train, here, tmp_path):
    rows = tmp_path / "pairs.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"say {i}", "chosen": "red.", "rejected": "blue."}) + "\n"
                            for i in range(16)))
    run = posttrain.reward(model=half(), data=rows, method="lora", max_steps=2, batch_size=4, dtype="float32",
                           save_steps=1, output_dir=tmp_path / "run")
    with pytest.raises(UserError, match="a reward model's score cannot be merged into a model that writes") as e:
        merge(run.checkpoints[0])
    assert e.value.fix == "finish the run: its model folder holds both"
    with pytest.raises(UserError):
        merge(run.path)
    assert not (run.path / "merged").exists()


def test_the_questions_are_the_same_every_time():
    assert len(set(fixed_questions(20))) == 20 and fixed_questions(20) == fixed_questions(20)
    assert len(set(fixed_questions(100))) == 100 and BOUND == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("values", METHODS.values(), ids=METHODS)
def test_a_hundred_answers_of_the_embedded_model(train, values):
    run = train("builtin", data="builtin", max_steps=30, batch_size=16, learning_rate=2e-3, **values)
    _, found = merge(run.path, questions=100)
    print(values, found)
    assert found["float32"]["same"] == found["float32"]["prompts"] == 100
    assert found["float32"]["largest"] <= STATED * found["float32"]["scale"]
