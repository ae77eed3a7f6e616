"""An adapter knows its base: what changes the hash, what does not, and who refuses another base."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import posttrain
from posttrain.builtin import builtin_model_path
from posttrain.core.errors import UserError
from posttrain.model.identity import BLOCK, BLOCKS, base_hash, read_base, weight_files
from posttrain.model.resolve import resolve_model

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def base(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "base")


def edit(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_the_hash_is_that_of_the_weights(base, tmp_path):
    first = base_hash(str(base))
    assert len(first) == 64 and base_hash(str(base)) == first
    edit(base, lambda t: None)  # other metadata, the same weights
    assert base_hash(str(base)) == first
    model = AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "split", max_shard_size="100KB")
    assert len(weight_files(str(tmp_path / "split"))) > 1 and base_hash(str(tmp_path / "split")) == first
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert base_hash(str(tmp_path / "half")) != first


@pytest.mark.parametrize("change", [
    lambda t: t["model.norm.weight"][0].add_(1e-6),
    lambda t: t["model.embed_tokens.weight"].mul_(1 + 1e-6),
    lambda t: t.update({"model.norm.weight": t["model.norm.weight"].to(torch.bfloat16)}),
    lambda t: t.update({"model.embed_tokens.weight": torch.cat([t["model.embed_tokens.weight"], torch.zeros(1, 64)])}),
    lambda t: t.pop("model.norm.weight")], ids=["one value", "one tensor", "a type", "a row", "a tensor less"])
def test_what_changes_it(base, change):
    before = base_hash(str(base))
    edit(base, change)
    assert base_hash(str(base)) != before


def test_of_a_large_tensor_ends_and_steps_are_read(tmp_path):
    size = BLOCK * BLOCKS  # four times what is read whole
    tensor = torch.zeros(size)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    before = base_hash(str(tmp_path))
    for at in (0, size - 1, size // (BLOCKS - 1)):
        changed = tensor.clone()
        changed[at] = 1
        save_file({"w": changed}, tmp_path / "model.safetensors")
        assert base_hash(str(tmp_path)) != before


def test_no_weights_no_hash(tmp_path):
    assert base_hash(str(tmp_path)) == "" and base_hash("nobody/has-this-model") == ""
    assert len(base_hash(str(builtin_model_path()))) == 64


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_another_base_is_refused(base, rows, tmp_path, method):
    keys = {"data": rows, "method": method, "dtype": "float32", "max_steps": 2, "batch_size": 4}
    run = posttrain.sft(model=base, output_dir=tmp_path / "run", save_steps=1, **keys)
    known = read_base(resolve_model(run.path))
    assert known.sha256 == base_hash(str(base)) and known.four_bit == (method == "qlora")
    edit(base, lambda t: t["model.norm.weight"].mul_(1.5))
    for use in (lambda: posttrain.load(run.path), lambda: posttrain.load(run.checkpoints[0]),
                lambda: posttrain.sft(model=run.path, output_dir=tmp_path / "next", **keys),
                lambda: posttrain.sft(model=run.path, output_dir=tmp_path / "full", **(keys | {"method": "full"})),
                lambda: go_on(run, tmp_path)):
        with pytest.raises(UserError, match="these weights are not the base that the adapter was trained on") as e:
            use()
        assert known.sha256[:12] in e.value.expected and base_hash(str(base))[:12] in e.value.found
        assert "base_model_name_or_path" in e.value.fix


def go_on(run, tmp_path):
    folder = shutil.copytree(run.path, tmp_path / "cut")
    shutil.rmtree(folder / "model")
    (folder / "run.json").write_text('{"status": "running", "step": 1}')
    posttrain.sft(output_dir=folder, resume=True)


def test_an_adapter_keeps_to_how_its_base_was_packed(base, rows, tmp_path):
    keys = {"data": rows, "dtype": "float32", "max_steps": 1, "batch_size": 4}
    first = posttrain.sft(model=base, method="qlora", output_dir=tmp_path / "run", **keys)
    with pytest.raises(UserError, match="an adapter is continued on the base that it was trained on") as e:
        posttrain.sft(model=first.path, method="lora", output_dir=tmp_path / "other", **keys)
    assert e.value.found == "lora" and e.value.expected.startswith("qlora, as ") and "set method: qlora" in e.value.fix
    again = posttrain.sft(model=first.path, method="qlora", output_dir=tmp_path / "again", **keys)
    assert read_base(resolve_model(again.path)) == read_base(resolve_model(first.path))


def test_an_adapter_of_another_tool_is_not_checked(base, rows, tmp_path):
    run = posttrain.sft(model=base, data=rows, dtype="float32", max_steps=1, batch_size=4, output_dir=tmp_path / "run")
    (run.model_path / "base.json").unlink()
    edit(base, lambda t: t["model.norm.weight"].mul_(1.5))
    assert read_base(resolve_model(run.path)) is None
    posttrain.load(run.path)
    (run.model_path / "base.json").write_text(json.dumps(["not", "keys"]))
    with pytest.raises(UserError, match=r"base\.json cannot be read") as e:
        posttrain.load(run.path)
    assert "remove this file" in e.value.fix
