"""Settings: every problem at once, the field's names, one key enough where one is."""

from typing import get_args

import pytest

from posttrain.core.choices import choices
from posttrain.core.config import Settings, dump_config, key_names, make_settings, read_config, users_of
from posttrain.core.errors import SettingsError, UserError


def problems(**values):
    with pytest.raises(SettingsError) as e:
        make_settings(values, {"lr": "--lr", "batch_size": "run.yaml:3"})
    return str(e.value)


def test_all_problems_at_once():
    text = problems(lr=1, lerning_rate=2, batch_size="x", max_length=9000, pack_tokens=100)
    assert "unknown key `lr`\n  where:    --lr\n  fix:      use learning_rate" in text
    assert "unknown key `lerning_rate`" in text and "did you mean `learning_rate`?" in text
    assert "`batch_size` has no valid value\n  where:    run.yaml:3\n  found:    'x'" in text
    assert "pack_tokens (100) must be at least max_length (9000)" in text
    assert text.count("error:") == 4


def test_keys_are_judged_together_only_when_each_is_valid():
    text = problems(max_length="q", pack_tokens=10)
    assert text.count("error:") == 1 and "`max_length` has no valid value" in text


@pytest.mark.parametrize(("key", "said"), [
    ("per_device_train_batch_size", "× gradient_accumulation_steps: use batch_size"),
    ("cutoff_len", "use max_length"), ("packing", "always packed"), ("finetuning_type", "use method"),
    ("train_on_inputs", "use train_on: all_tokens"), ("num_epochs", "use num_train_epochs")])
def test_a_peers_key_says_what_it_becomes(key, said):
    assert said in problems(**{key: 1})


def test_a_longer_row_needs_one_key():
    settings = make_settings({"max_length": 9000})
    assert settings.pack_tokens == 9000
    assert ("pack_tokens", 9000, "max_length; the default of 4096 is too small for it") in choices(settings)
    assert make_settings({"max_length": 900}).pack_tokens == 4096


def test_together():
    assert "exclude each other" in problems(eval_data="a.json", eval_split=0.1)
    assert "data is empty" in problems(data=[])


@pytest.mark.parametrize(("values", "said"), [
    ({"method": "full", "lora_r": 4, "lora_dropout": 0.1}, "lora_r, lora_dropout: nothing to adapt under method: full"),
    ({"method": "full", "use_dora": True}, "use_dora: nothing to adapt under method: full"),
    ({"method": "qlora", "dtype": "float64"}, "method: qlora computes in bfloat16 or float32, not float64: drop dtype"),
    ({"model": "a", "model_config": "b.yaml", "method": "full"}, "model and model_config exclude each other"),
    ({"warmup_ratio": 0.1, "warmup_steps": 5}, "warmup_ratio and warmup_steps exclude each other"),
    ({"eval_steps": 5}, "eval_steps has no rows to validate on: set eval_data or eval_split"),
    ({"objective": "kto", "desirable_weight": 0, "undesirable_weight": 0}, "are both 0, so nothing is learnt"),
    ({"objective": "ppo", "batch_size": 4, "minibatches": 5},
     "minibatches (5) are more than the prompts of a collection (4)"),
    ({"objective": "grpo", "minibatches": 1, "clip_range": 0.1}, "clip_range changes nothing where a collection"),
    ({"objective": "ppo", "minibatches": 1, "ppo_epochs": 1, "early_stop_kl": 0.1}, "early_stop_kl changes nothing"),
    ({"objective": "ppo", "max_steps": 9, "critic_warmup": 2},
     "critic_warmup (2) leaves the policy nothing to learn in: max_steps (9) is 2 collections of 8 updates")])
def test_a_key_that_would_change_nothing_is_refused(values, said):
    assert said in problems(**values)


def test_keys_beside_which_others_count_are_taken():
    for values in ({"minibatches": 1, "clip_range": 0.1}, {"max_steps": 9, "critic_warmup": 1},
                   {"batch_size": 4, "minibatches": 4}, {"minibatches": 1, "ppo_epochs": 2, "early_stop_kl": 0.1}):
        make_settings({"objective": "ppo"} | values)
    make_settings({"objective": "kto", "desirable_weight": 0})


@pytest.mark.parametrize(("steps", "every", "collections", "made"), [
    (1, 1, 1, 4), (8, 1, 2, None), (24, 2, 6, None), (25, 2, 7, 28), (400, 10, 100, None)])
def test_a_short_run_is_saved_too(steps, every, collections, made):
    """At least one checkpoint in each third of a run; and updates that are made beyond max_steps are told."""
    found = {key: (value, why) for key, value, why in choices(make_settings(
        {"objective": "grpo", "reward": "exact", "max_steps": steps}))}
    often = {1: "each", 2: "every 2", 10: "every 10"}[every]
    assert found["save_steps"] == (
        4 * every, f"{often} of {collections} collections: a run that a guard stops later has a checkpoint")
    assert found.get("max_steps") == (made and (steps, f"made in whole collections of 4 updates, so {made} are made"))
    assert "save_steps" not in {key for key, _, _ in choices(make_settings(
        {"objective": "grpo", "reward": "exact", "max_steps": steps, "save_steps": 3}))}


@pytest.mark.parametrize(("key", "value", "said"), [
    ("learning_rate", True, "a number; true and false"), ("batch_size", True, "a number; true and false"),
    ("pack_tokens", False, "a number; true and false"), ("learning_rate", float("inf"), "finite number"),
    ("num_train_epochs", "inf", "finite number"), ("data", [None], "valid string"),
    ("eval_data", [{"path": "x.json"}], "valid string"), ("template_date", "yesterday", "a date such as 2025-01-31")])
def test_a_value_that_is_none(key, value, said):
    text = problems(**{key: value})
    assert f"`{key}` has no valid value" in text and said in text


def test_switches_stay_switches():
    settings = make_settings({"shuffle": False, "gradient_checkpointing": "true", "enable_thinking": True})
    assert (settings.shuffle, settings.gradient_checkpointing, settings.enable_thinking) == (False, True, "true")


def test_a_date_in_yaml_needs_no_quotes(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("template_date: 2025-01-31\r\n")
    assert make_settings(read_config(path)).template_date == "2025-01-31"
    for text in (b"template_date: 2025-13-31\n", "batch_size: 8\n".encode("utf-16"), b"a: [\n"):
        path.write_bytes(text)
        with pytest.raises(UserError, match="the settings file is not valid YAML"):
            read_config(path)


def test_a_dumped_config_is_a_valid_input(tmp_path):
    settings = make_settings({"data": "a.json", "columns": "prompt=q,response=a", "learning_rate": "2e-5"})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(settings))
    again = make_settings(read_config(path))
    assert again == settings and again.data == ["a.json"] and again.columns == {"prompt": "q", "response": "a"}
    assert set(read_config(path)) == {n for n in key_names() if n == "model_config" or "sft" in users_of(n)}


def test_a_rate_in_yaml_is_a_number(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 2e-5\nbatch_size: 8\n")
    assert read_config(path) == {"learning_rate": 2e-5, "batch_size": 8}
    path.write_text("- a\n")
    with pytest.raises(UserError, match="holds no keys"):
        read_config(path)


@pytest.mark.parametrize("verb", get_args(Settings.model_fields["objective"].annotation))
def test_at_most_about_seventy_keys_a_verb(verb):
    assert len([name for name in Settings.model_fields if verb in users_of(name)]) <= 72
