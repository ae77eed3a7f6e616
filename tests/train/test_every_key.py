"""No dead option: every settings key is varied, and a difference is seen. A key without a case here fails."""

from __future__ import annotations

import json
import shutil
import sys
import types

import preference_key_cases
import pytest
import sampled_keys
import torch
from key_cases import max_restarts, processes

from posttrain.core.config import key_names

pytestmark = pytest.mark.usefixtures("in_process", "torch_as_before")

DATED = ("{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.role + ': ' + m.content + (eos_token if m.role == "
         "'assistant' else '|') }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}")
SWITCHED = ("{% for m in messages %}{{ m.role + ': ' + ('no thought ' if m.role == 'assistant' and not enable_thinking "
            "else '') + m.content + (eos_token if m.role == 'assistant' else '|') }}{% endfor %}"
            "{% if add_generation_prompt %}assistant: {{ '' if enable_thinking else 'no thought ' }}{% endif %}")


@pytest.fixture
def torch_as_before():
    """What a key sets in torch for the whole process is set back."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def other_weights(**values):
    """A case: these values over the first dict's give other weights."""
    def case(bench):
        assert bench.differ({}, values)
    return case


def other_adapter(**values):
    def case(bench):
        assert bench.differ({"method": "lora"}, {"method": "lora", **values})
    return case


def objective(bench):
    assert "these settings are of `posttrain dpo`" in bench.fails(objective="dpo")


def model(bench):
    other = bench.folder / "other"
    shutil.copytree(bench.model, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rope_parameters": {"rope_theta": 100.0,
                                                                               "rope_type": "default"}}))
    assert bench.differ({}, {"model": str(other)})


SHAPE = ("model_type: qwen3\nvocab_size: 300\nhidden_size: 32\nintermediate_size: 32\nnum_hidden_layers: 1\n"
         "num_attention_heads: 2\nnum_key_value_heads: 1\nhead_dim: 16\n")


def model_config(bench):
    values = {"model": "builtin", "model_config": bench.path("shape.yaml", SHAPE)}
    run = bench.run(**values)
    assert json.loads((run.model_path / "config.json").read_text())["hidden_size"] == 32
    assert "tokenizer: trained on the data, 300 entries" in bench.text(**values)


def tokenizer(bench):
    from posttrain.app.scratch import make_tokenizer

    make_tokenizer(iter(["nothing of these words"]), 290, bench.folder / "bytes")
    values = {"tokenizer": str(bench.folder / "bytes")}
    assert bench.run(**values).ledger["tokens"]["rendered"] > bench.run().ledger["tokens"]["rendered"]
    saved = json.loads((bench.run(**values).model_path / "tokenizer.json").read_text())
    assert len(saved["model"]["vocab"]) < 300


def chat_template(bench):
    assert "chat template = plain" in bench.text() and "chat template = chatml" in bench.text(chat_template="chatml")
    assert "<|im_end|>" in (bench.run(chat_template="chatml").model_path / "chat_template.jinja").read_text()


def trust_remote_code(bench):
    folder = bench.folder / "own_code"
    shutil.copytree(bench.model, folder)
    (folder / "own.py").write_text("from transformers import Qwen3Config, Qwen3ForCausalLM\n"
                                   "class OwnConfig(Qwen3Config):\n    model_type = 'own_tiny'\n"
                                   "class OwnModel(Qwen3ForCausalLM):\n    config_class = OwnConfig\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own_tiny", "architectures": ["OwnModel"],
               "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    said = bench.fails(model=str(folder), output_dir=bench.folder / "refused")
    assert "this model brings Python code of its own" in said and "trust_remote_code: true" in said
    assert not bench.differ({}, {"model": str(folder), "trust_remote_code": True})  # the same shape, by its own code


def device(bench):
    assert "no CUDA device was found" in bench.text() or "CUDA:" in bench.text()
    assert "device = cpu: as set" in bench.text(device="cpu")
    assert "there is no such CUDA device" in bench.fails(device="cuda:99")


def deterministic(bench):
    bench.run(deterministic=True)
    assert torch.are_deterministic_algorithms_enabled()


def threads(bench):
    assert ", 3 threads" in bench.text(threads=3) and torch.get_num_threads() == 3


def eval_data(bench):
    values = {"eval_data": bench.path("held.jsonl", [{"prompt": "red", "completion": "blue"}])}
    assert "eval_loss" in bench.run(**values).metrics[-1] and "eval_loss" not in bench.run().metrics[-1]


def eval_split(bench):
    assert "144 rows, format alpaca, 14 held out" in bench.text(eval_split=0.1)
    assert "eval_loss" in bench.run(eval_split=0.1).metrics[-1]


def columns(bench):
    values = {"data": bench.path("odd.jsonl", [{"ask": f"say {i}", "reply": "well"} for i in range(40)])}
    assert "columns" in bench.fails(**values)
    assert bench.run(**values, columns={"prompt": "ask", "response": "reply"}).ledger["rows"]["trained"] == 32


LONG = [{"messages": [{"role": "user", "content": "say red"}, {"role": "assistant", "content": "red"},
                      {"role": "user", "content": "say blue"}, {"role": "assistant", "content": "blue " * 30}]}] * 32


def max_length(bench):
    data = bench.path("long.jsonl", LONG)
    assert bench.run(data=data).ledger["rows"]["cut"] == 0
    assert bench.run(data=data, max_length=32).ledger["rows"]["cut"] == 32


def overlong(bench):
    values = {"data": bench.path("long.jsonl", LONG), "max_length": 32}
    assert bench.run(**values).ledger["rows"]["cut"] == 32  # cut, the default
    assert "all rows are dropped: longer than max_length" in bench.fails(**values, overlong="drop")
    assert "a row is longer than max_length" in bench.fails(**values, overlong="error")


BROKEN = ['{"prompt": "say red", "completion": "red"}'] * 30 + ['{"prompt": '] + [
    '{"prompt": "say blue", "completion": "blue"}'] * 9


def bad_rows(bench):
    values = {"data": bench.path("broken.jsonl", "\n".join(BROKEN) + "\n"), "max_steps": 5}
    assert "broken.jsonl:31" in bench.fails(**values)
    assert bench.run(**values, bad_rows="skip").ledger["rows"]["dropped"] == {"malformed row": 1}


def max_lost(bench):
    values = {"data": bench.path("empty.jsonl", [{"prompt": "a", "completion": "b" * (i % 4 > 0)} for i in range(32)])}
    assert "at most 0.05 of the rows (max_lost)" in bench.fails(**values)
    assert bench.run(**values, max_lost=0.3).ledger["rows"]["dropped"] == {"empty answer": 8}


def train_on(bench):
    data = bench.path("long.jsonl", LONG)
    counts = [bench.run(data=data, train_on=kind).ledger["tokens"]["trained"] for kind in ("last", "all", "all_tokens")]
    assert counts == sorted(set(counts))


def enable_thinking(bench):
    values = {"chat_template": bench.path("switched.jinja", SWITCHED), "train_on": "all_tokens"}
    assert bench.differ(values, {**values, "enable_thinking": "true"})
    assert "enable_thinking = true: as set" in bench.text(**values, enable_thinking="true")
    assert "enable_thinking = the template's default: its prompts fit these rows" in bench.text(**values)


def template_date(bench):
    values = {"chat_template": bench.path("dated.jinja", DATED)}
    assert bench.differ({**values, "template_date": "2020-01-01"}, {**values, "template_date": "2021-12-31"})


def num_train_epochs(bench):
    short, long = (bench.run(max_steps=None, batch_size=72, num_train_epochs=n) for n in (1, 1.5))
    assert len(short.metrics) == 2 and len(long.metrics) == 3 and long.metrics[-1]["epoch"] == 1.5


def max_steps(bench):
    assert [len(bench.run(max_steps=n).metrics) for n in (2, 3)] == [2, 3]


def pack_tokens(bench):
    small = {"pack_tokens": 64, "max_length": 64}
    assert bench.differ({"max_length": 64}, small)  # in the last bits
    a, b = bench.weights(max_length=64), bench.weights(**small)
    assert all(torch.allclose(a[n], b[n], rtol=1e-3, atol=1e-4) for n in a)
    assert "planned within four fifths of" in bench.text(pack_tokens="auto")


def gradient_checkpointing(bench, monkeypatch):
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    calls, real = [], Qwen3Attention.forward
    monkeypatch.setattr(Qwen3Attention, "forward", lambda self, *given, **more: calls.append(1) or real(
        self, *given, **more))
    counts = []
    for value in (False, True):
        calls.clear()
        bench.run(gradient_checkpointing=value, batch_size=7)  # as no other run, so that its plan is traced
        counts.append(len(calls))
    assert counts[1] - counts[0] == (1 + 1 + 4) * 2  # plan, rehearsal and updates by layers, run once more


def lora_target_modules(bench):
    names = bench.weights(method="lora", lora_target_modules=["q_proj"])
    assert names and all("q_proj" in n for n in names)


def output_dir(bench):
    run = bench.run(output_dir=bench.folder / "named" / "here")
    assert run.path == bench.folder / "named" / "here" and run.model_path.is_dir()


def resume(bench):
    folder = bench.run(output_dir=bench.folder / "again").path
    assert "the output folder is in use" in bench.fails(output_dir=folder, max_steps=3)
    assert "already finished" in bench.text(output_dir=folder, resume=True)


def allow_changes(bench):
    folder = bench.run(output_dir=bench.folder / "changing", save_steps=2).path
    shutil.rmtree(folder / "model")
    (folder / "run.json").unlink()
    assert "a resumed run keeps its settings" in bench.fails(output_dir=folder, resume=True, seed=7)
    assert bench.run(output_dir=folder, resume=True, seed=7, allow_changes=True).config["seed"] == 7


def save_steps(bench):
    assert not bench.run().checkpoints and [p.name for p in bench.run(save_steps=3).checkpoints] == ["3"]


def save_total_limit(bench):
    kept = [[p.name for p in bench.run(save_steps=1, save_total_limit=n).checkpoints] for n in (1, 2)]
    assert kept == [["3"], ["2", "3"]]


def eval_steps(bench):
    often, seldom = (bench.run(eval_split=0.1, eval_steps=n).metrics for n in (1, 3))
    assert [[m["step"] for m in run if "eval_loss" in m] for run in (often, seldom)] == [[1, 2, 3, 4], [3, 4]]


def early_stopping_patience(bench):
    held = {"eval_data": bench.path("held.jsonl", [{"prompt": "red", "completion": "blue"}]), "eval_steps": 1,
            "learning_rate": 0.3, "max_steps": 8, "warmup_steps": 0}
    assert len(bench.run(**held).metrics) == 8
    patient = bench.run(**held, early_stopping_patience=1)
    assert patient.status["exported_step"] < patient.status["step"] < 8


def logging_steps(bench):
    assert "update 2/4" in bench.text() and "update 2/4" not in bench.text(logging_steps=3)
    assert "update 3/4" in bench.text(logging_steps=3)


def report_to(bench, monkeypatch):
    assert "trackio is not installed" in bench.fails(report_to="trackio") and "trackio" not in sys.modules
    calls, fake = [], types.ModuleType("trackio")
    fake.init = lambda **facts: calls.append(("init", facts["project"], facts["config"]["seed"]))
    fake.log = lambda values, step: calls.append((step, sorted(values)))
    fake.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, "trackio", fake)
    bench.run(report_to="trackio", logging_steps=2)
    assert calls[0] == ("init", "posttrain", 42) and calls[-1] == "finish"
    assert [c[0] for c in calls[1:-1]] == [2, 4] and {"loss", "learning_rate", "grad_norm"} <= set(calls[1][1])


CASES = {
    "data": lambda bench: other_weights(data=bench.path("one.jsonl", [{"prompt": "x", "completion": "y"}] * 32))(bench),
    "dtype": other_weights(dtype="bfloat16"),
    "shuffle": other_weights(shuffle=False),
    "method": other_weights(method="lora"),
    "learning_rate": other_weights(learning_rate=1e-3),
    "batch_size": other_weights(batch_size=4),
    "lr_scheduler_type": other_weights(lr_scheduler_type="linear"),
    "warmup_ratio": other_weights(warmup_ratio=0.5),
    "warmup_steps": other_weights(warmup_steps=3),
    "weight_decay": other_weights(weight_decay=0.1),
    "adam_beta1": other_weights(adam_beta1=0.5),
    "adam_beta2": other_weights(adam_beta2=0.9),
    "adam_epsilon": other_weights(adam_epsilon=1e-3),
    "max_grad_norm": other_weights(max_grad_norm=0.01),
    "neftune_noise_alpha": other_weights(neftune_noise_alpha=5.0),
    "label_smoothing_factor": other_weights(label_smoothing_factor=0.1),
    "seed": other_weights(seed=1),
    "lora_r": other_adapter(lora_r=4),
    "lora_alpha": other_adapter(lora_alpha=4),
    "lora_dropout": other_adapter(lora_dropout=0.5),
    "use_rslora": other_adapter(use_rslora=True),
    "use_dora": other_adapter(use_dora=True),
} | {case.__name__: case for case in (
    objective, model, model_config, tokenizer, chat_template, trust_remote_code, device, deterministic, threads,
    eval_data, eval_split, columns, max_length, overlong, bad_rows, max_lost, train_on, enable_thinking, template_date,
    num_train_epochs, max_steps, pack_tokens, gradient_checkpointing, lora_target_modules, output_dir, resume,
    allow_changes, save_steps, save_total_limit, eval_steps, early_stopping_patience,
    logging_steps, report_to, processes, max_restarts)} | preference_key_cases.CASES | sampled_keys.CASES


@pytest.mark.parametrize("key", key_names())
def test_every_key_changes_something(key, bench, monkeypatch):
    assert key in CASES, f"{key} has no case here: vary it and see a difference"
    case = CASES[key]
    case(*(bench, monkeypatch)[:case.__code__.co_argcount])


def test_no_case_is_left_over():
    assert set(CASES) == set(key_names())
