"""Four bits a weight: what PEFT and bitsandbytes give by hand, one base in every type, gradients that stay right."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

import posttrain
from posttrain.core.config import make_settings
from posttrain.core.errors import UserError
from posttrain.model.memory import highest
from posttrain.model.policy import build_policy, lower, open_model
from posttrain.model.quantize import count_weights, packed_layers, unpack
from posttrain.model.resolve import resolve_model
from posttrain.train.session import count_parameters

pytest.importorskip("bitsandbytes", reason="pip install 'posttrain[qlora]'")
pytestmark = pytest.mark.usefixtures("in_process")
IDS = torch.arange(3, 40)[None]


def policy_of(folder, **values):
    settings = make_settings({"method": "qlora", "dtype": "float32"} | values)
    return build_policy(settings, resolve_model(folder), vocab_size=100, new_tokens=[], special={})


def by_hand(folder, dtype=torch.float32):
    """What the field's recipe loads: transformers, bitsandbytes, no line of ours."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype))
    return as_trained(model)


def as_trained(model):
    """Without the kernel for evaluation that some CPUs have: it multiplies in bf16 and would re-pack the layers."""
    for m in model.modules():
        if hasattr(m, "support_avx512bf16_for_cpu"):
            m.support_avx512bf16_for_cpu = False
    return model


def gradients(policy):
    policy.model.zero_grad(set_to_none=True)
    policy.model.train()
    torch.manual_seed(1)
    policy.model(input_ids=IDS, labels=IDS).loss.backward()
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_evaluation_changes_no_gradient(tiny_model, dtype):
    """The forward of an evaluation must not re-pack the layers; a fresh adapter's B is zero, so it is set first."""
    policy = policy_of(tiny_model, dtype=dtype)
    with torch.no_grad():
        for name, p in policy.model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.05)
    lower(policy.model, policy.dtype)
    before = gradients(policy)
    with torch.no_grad():
        policy.model.eval()(input_ids=IDS)
    after = gradients(policy)
    assert len(before) == 2 * 14 and all(torch.equal(before[n], after[n]) for n in before)


def test_the_first_loss_is_that_of_peft_and_bitsandbytes_by_hand(tiny_model, rows, tmp_path):
    from posttrain.data.read import open_source
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer

    run = posttrain.sft(model=tiny_model, data=rows, method="qlora", dtype="float32", max_steps=1, batch_size=6,
                        shuffle=False, output_dir=tmp_path / "run")
    source, renderer = open_source(str(rows)), Renderer(load_tokenizer(str(tiny_model)))
    model = get_peft_model(by_hand(tiny_model), LoraConfig(r=16, lora_alpha=32, target_modules="all-linear",
                                                          task_type="CAUSAL_LM"))
    total = count = 0
    for rendered in renderer.render([source.row(i) for i in range(6)]):
        ids = torch.tensor([list(map(int, rendered.sequences[0].ids))])
        trained = torch.tensor([bool(w) for w in rendered.sequences[0].weights])[1:]
        logits = model(input_ids=ids).logits[0, :-1][trained]
        total += F.cross_entropy(logits, ids[0, 1:][trained], reduction="sum").item()
        count += int(trained.sum())
    assert run.metrics[0]["trained_tokens"] == count
    assert run.metrics[0]["loss"] == pytest.approx(total / count, rel=1e-6)


def test_the_codes_are_the_files(make_model, tmp_path):
    """A float32 base gives the same codes whatever type is computed in: rounding it to bf16 first would not."""
    base = make_model("codes")
    codes = [{n: layer.weight.data.clone() for n, layer in packed_layers(policy_of(base, dtype=dtype).model)}
             for dtype in ("float32", "bfloat16")]
    assert len(codes[0]) == 14 and all(torch.equal(codes[0][n], codes[1][n]) for n in codes[0])
    rounded = {n: layer.weight.data for n, layer in packed_layers(by_hand(base, torch.bfloat16))}
    assert any(not torch.equal(c, rounded[n.removeprefix("base_model.model.").replace(".base_layer", "")])
               for n, c in codes[0].items())


def test_a_target_that_matches_nothing(tiny_model):
    with pytest.raises(UserError, match="a LoRA target matches no layer") as e:
        policy_of(tiny_model, lora_target_modules=["q_prj", "v_proj"])
    assert (e.value.where, e.value.found) == ("lora_target_modules", "q_prj")
    assert e.value.fix.startswith("nearest: q_proj") and "down_proj, gate_proj" in e.value.expected


def test_what_is_packed_and_what_is_not(tiny_model):
    policy = policy_of(tiny_model, dtype="bfloat16")
    frozen = [p for p in policy.model.parameters() if not p.requires_grad]
    assert {p.dtype for p in frozen} == {torch.uint8, torch.bfloat16}
    assert {p.dtype for p in policy.model.parameters() if p.requires_grad} == {torch.float32}
    plain = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert sum(count_weights(p) for p in frozen) == sum(p.numel() for p in plain.parameters())
    trained, total = count_parameters(policy.model)
    assert total == trained + sum(p.numel() for p in plain.parameters())
    assert policy.notes == ["qlora: 73,728 of 106,880 weights in 4 bits (NF4, 14 layers), the others in bfloat16"]
    state = packed_layers(policy.model)[0][1].weight.quant_state
    assert state.nested and state.quant_type == "nf4" and state.blocksize == 64 and state.dtype == torch.bfloat16


def test_plain_peft_loads_the_adapter(tiny_model, rows, tmp_path):
    run = posttrain.sft(model=tiny_model, data=rows, method="qlora", dtype="float32", max_steps=4, batch_size=8,
                        learning_rate=1e-2, output_dir=tmp_path / "run")
    ours = open_model(resolve_model(run.path), dtype="float32").model
    peft = AutoPeftModelForCausalLM.from_pretrained(run.model_path, quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True))
    as_trained(peft)
    with torch.no_grad():
        a, b, base = (m.eval()(input_ids=IDS).logits for m in (ours, peft, by_hand(tiny_model)))
    assert torch.equal(a, b) and (a - base).abs().max() > 1e-2


def test_unpacked_is_what_it_computes_with(tiny_model, tmp_path):
    """W as the packed layer multiplies by it; GPT-2's turned layers are turned back."""
    GPT2LMHeadModel(GPT2Config(vocab_size=90, n_positions=64, n_embd=64, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2")
    for folder in (tiny_model, tmp_path / "gpt2"):
        with torch.no_grad():
            packed = by_hand(folder)(input_ids=IDS).logits
            model = unpack(by_hand(folder))
            whole = model(input_ids=IDS).logits
        assert (packed - whole).abs().max() < 1e-5 and not packed_layers(model)
        model.save_pretrained(tmp_path / "whole")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
        assert torch.equal(again(input_ids=IDS).logits, whole) and not hasattr(again.config, "quantization_config")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_files_leave_memory_once_they_are_packed(tiny_model, tmp_path):
    """Norms and embeddings as views of the mapped file would keep all of it resident beside the codes."""
    base = shutil.copytree(tiny_model, tmp_path / "read-by-this-test")
    policy = policy_of(base)
    assert packed_layers(policy.model)
    assert str(base) not in Path("/proc/self/maps").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_the_files_are_no_memory_of_the_run(tiny_model):
    """The most that a run held counts from when the codes are made: before, the files' pages were in it, too."""
    block = torch.ones(100 << 20)
    most = highest()
    del block
    policy_of(tiny_model)
    assert highest() < most - (300 << 20)


@pytest.mark.parametrize(("method", "recomputed"), [("qlora", True), ("qlora", False), ("lora", True)])
def test_recomputing_on_four_bits_maps_large_blocks_apart(tiny_model, monkeypatch, method, recomputed):
    """And no other run does, nor one after it in the same process: it takes time (docs/memory.md)."""
    asked = []
    monkeypatch.setattr("posttrain.model.policy.map_large_blocks", asked.append)
    policy_of(tiny_model, method=method, gradient_checkpointing=recomputed)
    assert asked == [method == "qlora" and recomputed]


def test_a_base_that_is_packed_already(tiny_model, tmp_path):
    base = tmp_path / "packed"
    shutil.copytree(tiny_model, base)
    (base / "model.safetensors").unlink()
    by_hand(tiny_model).save_pretrained(base)
    a, b = (policy_of(folder).model for folder in (tiny_model, base))
    with torch.no_grad():
        assert torch.equal(a(input_ids=IDS).logits, b(input_ids=IDS).logits)
        assert torch.equal(open_model(resolve_model(base), dtype="float32").model(input_ids=IDS).logits,
                           a(input_ids=IDS).logits)  # chat takes it too
    with pytest.raises(UserError, match="the base is quantized: adapters on it are qlora") as e:
        policy_of(base, method="lora")
    assert e.value.fix == "set method: qlora, or name the unquantized model"
    whole = policy_of(base, method="full").model
    assert all(p.requires_grad and p.dtype == torch.float32 for p in whole.parameters())


def test_a_base_that_is_quantized_otherwise(tiny_model, tmp_path):
    base = tmp_path / "gptq"
    shutil.copytree(tiny_model, base)
    config = json.loads((base / "config.json").read_text())
    for values, found in (({"quant_method": "gptq", "bits": 4}, "gptq"),
                          ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes in 8 bits")):
        (base / "config.json").write_text(json.dumps(config | {"quantization_config": values}))
        with pytest.raises(UserError, match="the base is quantized already, in another way") as e:
            policy_of(base)
        assert (e.value.found, e.value.fix) == (found, "name the unquantized model")


OWN = """
import torch
from transformers import PreTrainedModel, PretrainedConfig, GenerationMixin
class OwnConfig(PretrainedConfig):
    model_type = "own_table"
class OwnModel(PreTrainedModel, GenerationMixin):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.table = torch.nn.Embedding(90, 8)
        self.lm_head = torch.nn.Linear(8, 90, bias=False)
        self.post_init()
    def get_input_embeddings(self):
        return self.table
    def get_output_embeddings(self):
        return self.lm_head
    def forward(self, input_ids, **kwargs):
        return self.lm_head(self.table(input_ids))
"""


def test_nothing_to_quantize(tmp_path):
    from safetensors.torch import save_file

    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "config.json").write_text(json.dumps({
        "model_type": "own_table", "architectures": ["OwnModel"], "dtype": "float32", "rope_theta": 1.0,
        "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}))
    save_file({"table.weight": torch.zeros(90, 8), "lm_head.weight": torch.zeros(90, 8)},
              tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="this architecture has no linear layers to quantize") as e:
        policy_of(tmp_path, trust_remote_code=True)
    assert (e.value.found, e.value.fix) == ("OwnModel", "set method: lora, or method: full")


def test_without_bitsandbytes(tiny_model, rows, tmp_path, monkeypatch):
    run = posttrain.sft(model=tiny_model, data=rows, method="qlora", dtype="float32", max_steps=1, batch_size=4,
                        output_dir=tmp_path / "run")
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="bitsandbytes is not installed") as e:
        posttrain.sft(model=tiny_model, data=rows, method="qlora", output_dir=tmp_path / "other")
    assert (e.value.where, e.value.found) == ("method", "qlora")
    assert e.value.fix == "pip install 'posttrain[qlora]', or set method: lora"
    assert not (tmp_path / "other").exists()
    with pytest.raises(UserError, match="bitsandbytes is not installed") as e:
        posttrain.load(run.path)
    assert (e.value.found, e.value.fix) == ("weights of 4 bits", "pip install 'posttrain[qlora]'")


def test_a_type_it_does_not_compute_in(tiny_model, rows, tmp_path):
    run = posttrain.sft(model=tiny_model, data=rows, method="qlora", dtype="float32", max_steps=1, batch_size=4,
                        output_dir=tmp_path / "run")
    with pytest.raises(UserError, match="weights of 4 bits compute in bfloat16 or float32") as e:
        posttrain.load(run.path, make_settings({"dtype": "float64"}))
    assert (e.value.where, e.value.found) == ("dtype", "float64")
