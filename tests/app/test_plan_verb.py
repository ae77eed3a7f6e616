"""`posttrain plan`: from a config alone, as JSON and as a table; quick and small for the largest of models."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from posttrain.app.cli import main

BIG = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
       "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False,
       "dtype": "bfloat16"}


def plan(capsys, *argv):
    assert main(["plan", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def config(tmp_path):
    """A folder with a config.json and nothing else."""
    small = BIG | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
                   "num_key_value_heads": 2, "vocab_size": 500}
    (tmp_path / "config.json").write_text(json.dumps(small))
    return tmp_path


def test_a_config_is_enough(config, capsys):
    found = plan(capsys, config, "--method", "full", "--dtype", "bfloat16", "--memory", "8")
    assert list(found["parts"]) == ["weights", "gradients", "optimizer", "activations", "logprobs", "runtime"]
    assert found["parts"]["weights"] == 2 * found["parameters"] and found["fits"] and found["change"] is None
    assert found["available_bytes"] == 8 << 30 and set(found["methods"]) == {"full", "lora", "qlora"}
    assert found["methods"]["full"]["plain"]["peak_bytes"] == found["peak_bytes"]
    assert found["methods"]["full"]["gradient_checkpointing"]["peak_bytes"] < found["peak_bytes"]
    assert found["largest_pack_tokens"] == 16384 and found["traced"] and found["updates"] is None
    assert found["disk"]["checkpoint_bytes"] == 12 * found["parameters"]
    again = plan(capsys, config / "config.json", "--method", "full", "--dtype", "bfloat16", "--memory", "8")
    for one in (found, again):
        assert one["disk"].pop("free_bytes") > 0
    assert again | {"model": 0} == found | {"model": 0}


def test_flops_of_a_token_are_six_a_weight_and_attention(config, capsys):
    found = plan(capsys, config, "--method", "full", "--memory", "8", "--max_length", "128", "--pack_tokens", "1024")
    products = 4 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96) + 500 * 64
    attention = 2 * 4 * 64 * 128
    assert found["flops_per_token"] == 6 * products + 3 * attention


def test_rows_give_updates_tokens_and_time(tiny_model, rows, capsys):
    found = plan(capsys, tiny_model, "--data", rows, "--num_train_epochs", "2", "--save_steps", "5", "--batch_size=8",
                 "--dtype", "float32")
    assert found["updates"] == 36 and 36 * 8 * 5 < found["tokens"] < 36 * 8 * 40 and found["seconds"] is not None
    disk = found["disk"]
    assert disk["checkpoints"] == 3 and disk["bytes"] == 3 * disk["checkpoint_bytes"] + disk["model_bytes"]
    one = plan(capsys, tiny_model, "--data", rows, "--max_steps", "2", "--dtype", "float32")
    assert one["planned_tokens"] < 4096 and one["updates"] == 2  # the largest update of the run is known


def test_rows_without_a_tokenizer_give_updates(config, rows, capsys):
    found = plan(capsys, config, "--data", rows, "--batch_size", "16", "--num_train_epochs", "1")
    assert found["updates"] == 9 and found["tokens"] is None and found["seconds"] is None


def test_what_does_not_fit_names_the_smallest_change_and_exits_0(config, capsys):
    (config / "config.json").write_text(json.dumps(BIG))
    found = plan(capsys, config, "--method", "qlora", "--memory", "48", "--pack_tokens", "1024")
    assert not found["fits"] and found["fix"] == "set gradient_checkpointing: true"
    assert found["change"] == {"gradient_checkpointing": True}
    assert main(["plan", str(config), "--memory", "4"]) == 0
    said = capsys.readouterr().out
    assert "does not fit; take a smaller model" in said and "70,553,706,496 parameters" in said and "qlora" in said


def test_table_and_verdict_agree_on_small_data(tiny_model, rows, capsys):
    """Where an update is smaller than a pack, what would fit is judged by what the run will hold."""
    found = plan(capsys, tiny_model, "--data", rows, "--max_steps", "2", "--batch_size", "2", "--memory", "0.0005")
    fitting = {(m, kind) for m, kinds in found["methods"].items() for kind, s in kinds.items() if s["fits"]}
    assert bool(fitting) == (found["fits"] or found["change"] is not None)


def test_an_adapter_is_planned_in_its_own_shape(tiny_model, rows, tmp_path, capsys, in_process):
    import posttrain

    run = posttrain.sft(model=tiny_model, data=str(rows), output_dir=tmp_path / "run", lora_r=2, max_steps=1)
    found = plan(capsys, run.path)
    fresh = plan(capsys, tiny_model, "--lora_r", "2")
    assert found["trained_parameters"] == fresh["trained_parameters"]


def test_what_the_objective_needs_is_planned(tiny_model, capsys):
    plain, smooth = (plan(capsys, tiny_model, "--memory", "1", *more)["parts"]["logprobs"]
                     for more in ((), ("--label_smoothing_factor", "0.1")))
    assert smooth > plain


@pytest.mark.parametrize(("change", "said"), [
    ({"num_attention_heads": 3, "num_key_value_heads": 3}, "attention heads"), ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": -4}, "no causal language model can be built"),
    ({"model_type": "t5"}, "no causal language model can be built")])
def test_a_config_that_builds_nothing_is_an_error(config, capsys, change, said):
    written = json.loads((config / "config.json").read_text())
    (config / "config.json").write_text(json.dumps(written | change))
    assert main(["plan", str(config), "--memory", "8"]) == 2
    assert said in capsys.readouterr().err


def test_this_processor_or_a_gpu(config, capsys):
    assert main(["plan", str(config), "--memory", "8", "--device", "cpu"]) == 2
    assert "a plan is for this machine's processor or for a GPU" in capsys.readouterr().err


def test_what_is_no_config_is_refused(tmp_path, capsys):
    (tmp_path / "config.json").write_text('{"model_type": "nothing_known"}')
    assert main(["plan", str(tmp_path)]) == 2
    assert "no config of a model can be read here" in capsys.readouterr().err
    assert main(["plan"]) == 2 and "MODEL" in capsys.readouterr().err


def test_70b_takes_seconds_and_less_than_a_gigabyte(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BIG))
    # said by the process itself: getrusage of children counts others that end meanwhile, and memory from the parent on
    code = ("import sys, time; from posttrain.app.cli import main; from posttrain.model.memory import highest;"
            "code = main(sys.argv[1:]); print(time.process_time(), highest(), file=sys.stderr); sys.exit(code)")
    done = subprocess.run([sys.executable, "-c", code, "plan", str(tmp_path), "--method", "qlora", "--json"],
                          capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0 and json.loads(done.stdout)["parameters"] == 70_553_706_496
    seconds, most = map(float, done.stderr.split()[-2:])
    assert seconds < 9  # of the processor; 5 on a quiet machine
    assert most < 1e9
