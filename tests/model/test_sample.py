"""The sampler against transformers' own generate, one prompt at a time, on tiny random models."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.core.errors import UserError
from posttrain.core.pack import make_pack
from posttrain.core.sequence import Sequence
from posttrain.model.draw import draw, uniform
from posttrain.model.probe import prepare_forward
from posttrain.model.sample import generate, one_by_one_reason
from posttrain.model.slots import fitting_slots

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 97, "max_position_embeddings": 256,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False}
SHAPES = {
    "qwen3": SMALL,
    "llama": SMALL,
    "mistral": SMALL | {"sliding_window": 7},
    "gemma2": SMALL | {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "gemma3_text": SMALL | {"sliding_window": 6, "query_pre_attn_scalar": 8},
    "qwen3_moe": SMALL | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 128, "bos_token_id": 1,
             "eos_token_id": 2, "tie_word_embeddings": False},
    "granite": SMALL | {"attention_multiplier": 0.3, "logits_scaling": 2.0},
}
STOPS = (5, 11, 40, 60, 70)


def tiny(kind: str, **changes) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SHAPES.get(kind, SMALL) | changes)))
    with torch.no_grad():  # sharp enough that rounding never decides
        for p in model.parameters():
            p.mul_(4.0 if p.dim() > 1 else 1.0)
    return model.eval()


def prompts(n: int = 11, longest: int = 23) -> list[list[int]]:
    draw_length = np.random.default_rng(3)
    return [draw_length.integers(3, 97, draw_length.integers(1, longest + 1)).tolist() for _ in range(n)]


@torch.no_grad()
def alone(model, prompt: list[int], new: int) -> tuple[list[int], list[float]]:
    """Greedy ids and log-probs by whole forwards, one prompt, no cache: the definition."""
    ids, logprobs = list(prompt), []
    for _ in range(new):
        logits_V = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].float()
        token = int(logits_V.argmax())
        logprobs.append(float(logits_V.log_softmax(-1)[token]))
        ids.append(token)
        if token in STOPS:
            break
    return ids[len(prompt):], logprobs


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("batch_size", [4, 64])
def test_greedy_equals_one_prompt_at_a_time(kind, batch_size):
    model = tiny(kind)
    assert one_by_one_reason(model) is None
    made = generate(model, prompts(), max_new_tokens=20, stop_ids=STOPS, batch_size=batch_size)
    for prompt, result in zip(prompts(), made, strict=True):
        ids, logprobs = alone(model, prompt, 20)
        assert result.ids == ids
        assert result.stopped == (ids[-1] in STOPS)
        assert result.answer_ids == (ids[:-1] if result.stopped else ids)
        assert result.logprobs == pytest.approx(logprobs, abs=1e-4)
    assert len({len(r.ids) for r in made}) > 1, "the rows should end at different steps"


def test_greedy_equals_transformers_generate():
    model = tiny("qwen3")
    made = generate(model, prompts(), max_new_tokens=20, stop_ids=STOPS)
    for prompt, result in zip(prompts(), made, strict=True):
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False,
                                  eos_token_id=list(STOPS), pad_token_id=0)
        assert result.ids == expected[0, len(prompt):].tolist()


@pytest.mark.parametrize("kind", ["qwen3", "gemma2"])
@pytest.mark.parametrize("cut", [{}, {"top_k": 7}, {"top_p": 0.8}])
def test_sampling_ignores_the_rest_of_the_batch(kind, cut):
    model = tiny(kind)
    options = {"max_new_tokens": 15, "stop_ids": STOPS, "temperature": 0.9, "seed": 7} | cut
    together = generate(model, prompts(), **options)
    small = generate(model, prompts(), batch_size=3, **options)
    single = generate(model, prompts(), batch_size=1, **options)
    assert [r.ids for r in together] == [r.ids for r in small] == [r.ids for r in single]
    other = generate(model, prompts(), **options | {"seed": 8})
    assert [r.ids for r in together] != [r.ids for r in other]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_forward_at_that_temperature(temperature):
    model = tiny("qwen3")
    made = generate(model, prompts(), max_new_tokens=12, stop_ids=STOPS, temperature=temperature, top_p=0.9, seed=1)
    for prompt, result in zip(prompts(), made, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + result.ids])).logits[0].float() / temperature
        expected = logits.log_softmax(-1)[len(prompt) - 1:-1].gather(-1, torch.tensor(result.ids)[:, None])[:, 0]
        assert result.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "adapter"])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
def test_logprobs_are_those_of_the_training_forward(temperature, lora):
    """The flat forward that trains gives the sampler's log-probs to 1e-4, in groups, refilled slots and any company."""
    from peft import LoraConfig, get_peft_model
    model = tiny("qwen3")
    if lora:
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM",
                                                 init_lora_weights=False))
    forward, how = prepare_forward(model)
    assert how.startswith("packed")
    group = [p for p in prompts(7) for _ in range(3)]
    for slots in (64, 4):
        made = generate(model, group, max_new_tokens=12, stop_ids=STOPS, temperature=temperature, seed=1,
                        batch_size=slots)
        laid = [Sequence(np.array(p + g.ids, np.int32), np.array([0.0] * len(p) + [1.0] * len(g.ids), np.float32),
                         np.zeros(len(p) + len(g.ids), np.uint8), "row:1") for p, g in zip(group, made, strict=True)]
        pack = make_pack(laid)
        with torch.no_grad():
            found = forward(pack, {"logprobs"}, temperature or 1.0).logprobs_T[pack.weights_T > 0]
        assert found.tolist() == pytest.approx([x for g in made for x in g.logprobs], abs=1e-4)


def test_equal_prompts_are_read_once_and_sampled_apart():
    model = tiny("qwen3")
    group = [[9, 8, 7, 6]] * 5 + [[3, 4]] * 3 + [[9, 8, 7, 6]]
    seen = []
    hook = model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape), with_kwargs=True)
    made = generate(model, group, max_new_tokens=10, stop_ids=STOPS, temperature=1.0)
    hook.remove()
    assert tuple(seen[0]) == (2, 4)
    single = generate(model, group, max_new_tokens=10, stop_ids=STOPS, temperature=1.0, batch_size=1)
    assert [r.ids for r in made] == [r.ids for r in single]
    assert len({tuple(r.ids) for r in made[:5]}) > 1


def test_finished_rows_leave_the_batch():
    model, rows = tiny("qwen3"), []
    hook = model.register_forward_pre_hook(lambda m, a, k: rows.append(k["input_ids"].shape[0]), with_kwargs=True)
    made = generate(model, prompts(), max_new_tokens=20, stop_ids=STOPS)
    hook.remove()
    alive = [sum(len(r.ids) > n for r in made) for n in range(max(len(r.ids) for r in made))]
    assert rows == alive


def test_long_prompts_are_read_in_pieces(monkeypatch):
    model = tiny("gemma2")
    whole = generate(model, prompts(), max_new_tokens=8, stop_ids=STOPS)
    monkeypatch.setattr("posttrain.model.sample.PREFILL_TOKENS", 9)
    assert [r.ids for r in generate(model, prompts(), max_new_tokens=8, stop_ids=STOPS)] == [r.ids for r in whole]


def test_streaming_sees_every_id():
    seen: dict[int, list[int]] = {}
    made = generate(tiny("llama"), prompts(), max_new_tokens=9, stop_ids=STOPS,
                    on_token=lambda index, token: seen.setdefault(index, []).append(token))
    assert [seen[i] for i in range(len(made))] == [r.ids for r in made]


def test_attention_and_modes_are_put_back():
    from transformers import AttentionInterface
    AttentionInterface.register("test_flat_only", lambda *a, **k: pytest.fail("it cannot read a cache"))
    model = tiny("qwen3")
    expected = generate(model, prompts(), max_new_tokens=5, stop_ids=STOPS)
    model.set_attn_implementation("test_flat_only")
    model.train()
    model.model.norm.eval()
    assert [r.ids for r in generate(model, prompts(), max_new_tokens=5, stop_ids=STOPS)] == [r.ids for r in expected]
    assert model.config._attn_implementation == "test_flat_only"
    assert model.training and not model.model.norm.training and model.model.layers[0].training
    assert next(model.parameters()).requires_grad


def test_a_capped_model_goes_through_eager():
    model = tiny("gemma2")
    expected = generate(model, prompts(), max_new_tokens=5, stop_ids=STOPS)
    model.set_attn_implementation("flex_attention")
    assert [r.ids for r in generate(model, prompts(), max_new_tokens=5, stop_ids=STOPS)] == [r.ids for r in expected]
    assert model.config._attn_implementation == "flex_attention"


def test_adapters_stay_on():
    from peft import LoraConfig, get_peft_model
    model = tiny("qwen3")
    plain = generate(model, prompts(), max_new_tokens=8, stop_ids=STOPS)
    wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM",
                                               init_lora_weights=False))
    wrapped.train()
    adapted = generate(wrapped, prompts(), max_new_tokens=8, stop_ids=STOPS)
    assert wrapped.training
    wrapped.eval()
    assert [r.ids for r in adapted] == [alone(wrapped, p, 8)[0] for p in prompts()]
    assert [r.ids for r in adapted] != [r.ids for r in plain]
    with wrapped.disable_adapter():
        off = generate(wrapped, prompts(), max_new_tokens=8, stop_ids=STOPS)
    assert [r.ids for r in off] == [r.ids for r in plain]


HYBRIDS = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": 97, "state_size": 4},
    "bamba": SMALL | {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
                      "mamba_n_groups": 1, "num_hidden_layers": 2},
}


@pytest.mark.parametrize("kind", HYBRIDS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_state_space_models_are_sampled_one_by_one(kind, temperature):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **HYBRIDS[kind])).eval()
    model.generation_config.repetition_penalty = 3.0  # a folder's own settings must not reach the sampler
    assert one_by_one_reason(model)
    few, seen = prompts(4), []
    made = generate(model, few, max_new_tokens=8, stop_ids=STOPS, temperature=temperature,
                    on_token=lambda i, t: seen.append((i, t)))
    assert seen == [(i, t) for i, r in enumerate(made) for t in r.ids]
    assert model.generation_config.repetition_penalty == 3.0
    for prompt, result in zip(few, made, strict=True):
        assert len(result.ids) == 8 or result.stopped
        if temperature == 0:
            assert result.ids == alone(model, prompt, 8)[0]


def test_learned_positions_end_the_answer():
    model = tiny("gpt2")
    made = generate(model, [[3] * 120, [4] * 5], max_new_tokens=20, stop_ids=())
    assert [len(r.ids) for r in made] == [8, 20] and not made[0].stopped
    with pytest.raises(UserError) as caught:
        generate(model, [[3] * 5, [4] * 128], max_new_tokens=20, stop_ids=())
    assert str(caught.value) == ("error: a prompt is longer than the model's positions\n"
                                 "  where:    prompt 2\n  found:    128 tokens\n  expected: fewer than 128\n"
                                 "  fix:      shorten the prompt")


def test_nothing_to_do():
    model = tiny("qwen3")
    assert generate(model, [], max_new_tokens=5, stop_ids=()) == []
    assert [r.ids for r in generate(model, [[3], [4]], max_new_tokens=0, stop_ids=())] == [[], []]


def test_draws_follow_the_distribution():
    logits_V = torch.tensor([2.0, 0.0, 1.0, -1.0, 0.5])
    n = 40_000
    numbers = torch.from_numpy(uniform(1, np.arange(n), np.arange(n) % 7))
    for options, allowed in (({}, 5), ({"top_k": 3}, 3), ({"top_p": 0.7}, 2), ({"top_k": 3, "top_p": 0.8}, 2)):
        ids_N, logprobs_N = draw(logits_V.expand(n, -1), numbers, 0.8, **options)
        probs_V = (logits_V / 0.8).softmax(-1)
        assert torch.allclose(logprobs_N, probs_V.log()[ids_N], atol=1e-5)
        kept_V = torch.zeros_like(probs_V).scatter(0, probs_V.topk(allowed).indices, probs_V.topk(allowed).values)
        shares_V = torch.bincount(ids_N, minlength=5) / n
        assert torch.allclose(shares_V, kept_V / kept_V.sum(), atol=0.01), options


def test_random_numbers_belong_to_seed_prompt_and_position():
    n = np.arange(20_000)
    numbers = uniform(3, n, n // 3)
    assert numbers.min() >= 0 and numbers.max() < 1 and abs(numbers.mean() - 0.5) < 0.01
    assert len(np.unique(numbers)) == len(n)
    assert uniform(3, n[5:6], n[5:6] // 3)[0] == numbers[5]
    for other in (uniform(4, n, n // 3), uniform(3, n + 1, n // 3), uniform(3, n, n // 3 + 1)):
        assert abs(np.corrcoef(numbers, other)[0, 1]) < 0.03


def test_the_head_is_given_whole_rows():
    """Of a slice of many rows torch makes a copy of a frozen head for each: 10 GB for 32 prompts of 0.6B."""
    model, seen = tiny("qwen3").requires_grad_(False), []
    hook = model.lm_head.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    generate(model, prompts(), max_new_tokens=3, stop_ids=STOPS)
    hook.remove()
    assert any(len(x) > 1 for x in seen) and all(x.is_contiguous() for x in seen)
    assert not model.lm_head._forward_pre_hooks, "nothing stays behind"


def test_slots_are_bounded_by_the_memory_of_the_machine(monkeypatch):
    """An eighth of it: keys and values of every column in every layer, and four float32 rows of logits each."""
    model, seen = tiny("qwen3"), []
    config = model.config
    row = 30 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4 + 16 * config.vocab_size
    monkeypatch.setattr("posttrain.model.slots.installed", lambda device: 8 * (3 * row + 1))
    assert fitting_slots(model, 30) == 3 and fitting_slots(model, 10**9) == 1
    hook = model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape[0]), with_kwargs=True)
    made = generate(model, [[5, 6, 7 + i] for i in range(9)], max_new_tokens=27, stop_ids=STOPS)
    hook.remove()
    assert max(seen) == 3 and len(made) == 9
    monkeypatch.setattr("posttrain.model.slots.installed", lambda device: 1 << 60)
    assert fitting_slots(model, 30) == 256
