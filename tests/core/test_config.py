"""Settings: every problem at once, the field's names, one key enough where one is."""

import pytest

from posttrain.core.config import Settings, choices, dump_config, key_names, make_settings, read_config
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


def test_a_dumped_config_is_a_valid_input(tmp_path):
    settings = make_settings({"data": "a.json", "columns": "prompt=q,response=a", "learning_rate": "2e-5"})
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(settings))
    again = make_settings(read_config(path))
    assert again == settings and again.data == ["a.json"] and again.columns == {"prompt": "q", "response": "a"}
    assert set(read_config(path)) == set(key_names())


def test_a_rate_in_yaml_is_a_number(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("learning_rate: 2e-5\nbatch_size: 8\n")
    assert read_config(path) == {"learning_rate": 2e-5, "batch_size": 8}
    path.write_text("- a\n")
    with pytest.raises(UserError, match="holds no keys"):
        read_config(path)


def test_at_most_about_seventy_keys():
    assert len(Settings.model_fields) <= 70
