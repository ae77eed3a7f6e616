"""The load probe passes what packs correctly, and sends everything else down the slow, safe path."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from posttrain.core.errors import UserError
from posttrain.model import probe
from posttrain.model.attention import NAME
from posttrain.model.probe import prepare_forward

BASE = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
PACKED = {
    "qwen3": {"head_dim": 16}, "llama": {}, "mistral": {"sliding_window": 5},
    "gemma2": {"head_dim": 16, "sliding_window": 5, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
               "query_pre_attn_scalar": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 5},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4},
    "granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0,
                "attention_multiplier": 0.2},
    "cohere": {"logit_scale": 0.3},
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 5},
    "qwen3_moe": {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}


def build(model_type, **more):
    torch.manual_seed(0)
    shape = {k: v for k, v in BASE.items() if model_type != "gpt2" or k in ("vocab_size", "bos_token_id",
                                                                            "eos_token_id")}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**shape, **more), dtype=torch.float32)
    for p in model.parameters():  # so large that any leak between sequences shows
        if p.dim() > 1:
            p.data.mul_(4)
    return model


@pytest.mark.parametrize("model_type", PACKED)
def test_packs(model_type):
    model = build(model_type, **PACKED[model_type])
    forward, said = prepare_forward(model)
    assert forward.flat and said == "packed rows equal separate rows (checked on this model)"
    assert model.config._attn_implementation == NAME


@pytest.mark.parametrize(("model_type", "more", "reason"), [
    ("mamba", {}, "recurrent (state-space or linear-attention) layers"),
    ("lfm2", {"full_attn_idxs": [1]}, "layers of kind conv"),
    ("bloom", {"n_layer": 2, "n_head": 4}, "cannot be set from outside")])
def test_falls_back_and_says_so(model_type, more, reason):
    model = build(model_type, **more)
    forward, said = prepare_forward(model)
    assert not forward.flat
    assert said.startswith("one sequence per forward through its own head: it") and reason in said
    assert model.config._attn_implementation != NAME
    pack, _ = probe._probe_packs(300, "cpu")
    assert torch.isfinite(forward(pack).logprobs_T).all()


def test_a_head_of_another_kind_is_found_out():
    model = build("llama")
    own = model.lm_head.forward
    calls = []

    def odd(x):  # scales its logits only inside the model's own forward, which [1, L, D] tells apart
        calls.append(x.dim())
        return own(x) * (1.0 if x.dim() == 2 else 3.0)

    model.lm_head.forward = odd
    forward, said = prepare_forward(model)
    assert not forward.flat and "packed log-probs differ from its own by" in said
    assert set(calls) == {2, 3}


def test_no_finite_log_probabilities_is_an_error():
    model = build("llama")
    model.model.norm.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="no finite log-probabilities"):
        prepare_forward(model)
