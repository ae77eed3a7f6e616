"""The command line becomes settings; every mistake is named, all at once."""

from __future__ import annotations

import pytest

from posttrain.app.arguments import parse
from posttrain.app.cli import main
from posttrain.app.help import verb_help
from posttrain.app.verbs import VERBS, keys_of
from posttrain.core.config import Settings, key_names, make_settings
from posttrain.core.errors import SettingsError, UserError


def errors(*argv: str) -> list[UserError]:
    with pytest.raises(UserError) as caught:
        parse(list(argv))
    return caught.value.errors if isinstance(caught.value, SettingsError) else [caught.value]


def only(*argv: str) -> str:
    found = errors(*argv)
    assert len(found) == 1, [str(e) for e in found]
    return str(found[0])


def test_a_bare_sft_trains_the_embedded_pair():
    settings = parse(["sft"]).settings
    assert (settings.model, settings.data, settings.method) == ("builtin", ["builtin"], "lora")


def test_dashes_underscores_and_equals_are_the_same():
    for flag in (["--learning_rate", "1e-4"], ["--learning-rate", "1e-4"], ["--learning-rate=1e-4"]):
        assert parse(["sft", *flag]).settings.learning_rate == 1e-4


@pytest.mark.parametrize(("argv", "value"), [
    (["--deterministic"], True), (["--deterministic", "true"], True), (["--deterministic=false"], False),
    (["--deterministic", "--seed", "1"], True), ([], False)])
def test_a_boolean_stands_bare_or_takes_a_value(argv, value):
    assert parse(["sft", *argv]).settings.deterministic is value


def test_a_default_of_true_can_be_turned_off():
    assert parse(["sft", "--shuffle", "false"]).settings.shuffle is False


def test_list_keys_repeat():
    settings = parse(["sft", "--data", "a,b.json", "--data=c.jsonl@0.2", "--lora_target_modules", "q_proj,v_proj"])
    assert settings.settings.data == ["a,b.json", "c.jsonl@0.2"]
    assert settings.settings.lora_target_modules == ["q_proj", "v_proj"]


def test_none_takes_back_a_value(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("max_steps: 3\n")
    assert parse(["sft", str(config)]).settings.max_steps == 3
    assert parse(["sft", str(config), "--max_steps", "none"]).settings.max_steps is None


def test_the_command_line_wins_over_the_file(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("learning-rate: 2e-5\nseed: 7\ndata: [x.json]\nmodel_config: tiny.yaml\n")
    settings = parse(["sft", str(config), "--seed", "8", "--data", "y.json"]).settings
    assert (settings.learning_rate, settings.seed, settings.data, settings.architecture) == (
        2e-5, 8, ["y.json"], "tiny.yaml")


def test_all_mistakes_are_shown_at_once(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("# a comment\nlr: 1e-4\nbatch_size: none of them\n")
    found = [str(e) for e in errors("sft", str(config), "--sede", "1", "--max_length", "0", "--epochs=2")]
    assert len(found) == 5
    text = "\n".join(found)
    for part in ("unknown key `lr`", f"{config}:2", "use learning_rate", "`batch_size` has no valid value",
                 f"{config}:3", "unknown key `sede`", "did you mean `seed`?", "`max_length` has no valid value",
                 "greater than or equal to 2", "unknown key `epochs`", "use num_train_epochs"):
        assert part in text, part


@pytest.mark.parametrize(("argv", "parts"), [
    (["sft", "--learn", "1"], ["unknown key `learn`", "did you mean `learning_rate`?"]),
    (["sft", "--per_device_train_batch_size", "4"], ["per_device_train_batch_size × gradient_accumulation_steps"]),
    (["sft", "--seed"], ["`--seed` has no value", "--seed=VALUE"]),
    (["sft", "--seed", "--method", "full"], ["`--seed` has no value"]),
    (["sft", "--seed", "1", "--seed", "2"], ["`--seed` is given twice", "keep one"]),
    (["sft", "rows.json"], ["cannot use `rows.json`", "--data rows.json"]),
    (["sft", "-m"], ["unknown argument `-m`", "two dashes"]),
    (["sft", "--pack_tokens", "100"], ["pack_tokens (100) must be at least max_length (1024)"]),
    (["chat"], ["`posttrain chat` needs MODEL", "posttrain chat runs/sft-1"]),
    (["compare", "a"], ["`posttrain compare` needs TUNED"]),
    (["chat", "a", "b"], ["cannot use `b`"]),
    (["chat", "a", "--learning_rate", "1"], ["`--learning_rate` changes nothing in `posttrain chat`"]),
    (["chat", "a", "--temprature", "1"], ["unknown key `temprature`", "did you mean `temperature`?"]),
    (["chat", "a", "--temperature", "-1"], ["`temperature` has no valid value", "at least 0"]),
    (["chat", "a", "--temperature", "nan"], ["`temperature` has no valid value", "a number"]),
    (["chat", "a", "--top_p", "1.5"], ["`top_p` has no valid value", "at most 1"]),
    (["chat", "a", "--max_new_tokens", "many"], ["found:    'many'", "a whole number"]),
    (["data", "show", "--json=maybe"], ["`json` has no valid value", "true or false"]),
    (["train"], ["unknown verb `train`", "demo, sft, "]),
    (["chatt"], ["did you mean `posttrain chat`?"]),
    (["data"], ["`posttrain data` needs to know what to do", "data check"]),
    (["data", "shwo"], ["unknown verb `data shwo`", "did you mean `posttrain data show`?"]),
    (["env", "now"], ["cannot use `now`", "no words"])])
def test_the_message_says_what_to_do(argv, parts):
    text = only(*argv)
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize(("argv", "fix"), [
    (["ppo", "--bta", "0.1"], "did you mean `data`?"),
    (["dpo", "--bta", "0.1"], "did you mean `beta`?"),
    (["dpo", "--mask_history"], "nothing in `posttrain dpo` plays its part; drop it"),
    (["sft", "--mask_history"], "use train_on: last"),
    (["grpo", "--truncation_strategy", "right"], "nothing in `posttrain grpo` plays its part; drop it"),
    (["chat", "a", "--lr", "1e-4"], "nothing in `posttrain chat` plays its part; drop it"),
    (["chat", "a", "--zzzzz", "1"], "see `posttrain chat --help` for every key")])
def test_a_verb_never_suggests_what_it_does_not_take(argv, fix):
    assert only(*argv).endswith(f"fix:      {fix}")


def test_a_settings_file_is_told_of_its_own_verb_alone():
    with pytest.raises(SettingsError, match="did you mean `beta`"):
        make_settings({"objective": "kto", "bta": 0.1})
    with pytest.raises(SettingsError) as e:
        make_settings({"objective": "grpo", "bta": 0.1})
    assert "beta" not in str(e.value)


def test_data_words_are_data():
    assert parse(["data", "check", "a.json", "b.json", "--max_length", "64"]).settings.data == ["a.json", "b.json"]


def test_a_key_written_twice_in_the_file(tmp_path):
    config = tmp_path / "a.yaml"
    config.write_text("seed: 1\ndata: [x]\nseed: 2\n")
    assert "`seed` is given twice" in (text := only("sft", str(config))) and f"{config}:3" in text and "line 1" in text


def test_resume_without_a_run_lists_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "none under runs/" in only("sft", "--resume")
    for name in ("a", "b"):
        (tmp_path / "runs" / name / "checkpoints" / "10").mkdir(parents=True)
    (tmp_path / "runs" / "unfinished" / "checkpoints" / "10.writing").mkdir(parents=True)
    text = only("sft", "--resume")
    assert "runs/a" in text and "runs/b" in text and "unfinished" not in text and "--resume" in text


def test_resume_takes_the_settings_of_the_run(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert "there is no run to resume" in only("sft", "--output_dir", str(run), "--resume")
    (run / "config.yaml").write_text(f"batch_size: 3\noutput_dir: {run}\n")
    for argv in (["--output_dir", str(run)], [str(run / "config.yaml")], [str(run)]):
        settings = parse(["sft", *argv, "--resume"]).settings
        assert (settings.batch_size, settings.output_dir, settings.resume) == (3, str(run), True)


def test_settings_of_another_verb_are_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("objective: dpo\n")
    resumed = only("sft", "--output_dir", str(tmp_path), "--resume")
    assert "these settings are of `posttrain dpo`" in resumed and f"{tmp_path / 'config.yaml'}:1" in resumed
    assert f"use `posttrain dpo --output_dir {tmp_path} --resume`" in resumed
    assert "use `posttrain dpo`" in only("sft", str(tmp_path))
    (tmp_path / "config.yaml").write_text("objective: sft\n")
    assert parse(["sft", str(tmp_path)]).settings.objective == "sft"
    assert "`--objective` changes nothing in `posttrain sft`" in only("sft", "--objective", "sft")


def test_every_key_stands_in_the_help():
    text = verb_help(VERBS["sft"], 100)
    assert all(f"  --{name}" in text for name in keys_of("sft")) and "--objective" not in text
    assert "[1024]" in text and "[1e-08]" in text and "--shuffle true|false" in text
    assert all(field.description for field in Settings.model_fields.values())


def test_every_verb_has_help_and_names_real_keys():
    for verb in VERBS.values():
        text = verb_help(verb, 80)
        assert verb.examples and all(f"--{o.name}" in text for o in verb.options)
        assert set(verb.keys) <= set(key_names())


def test_debug_shows_the_traceback(capsys, monkeypatch):
    monkeypatch.delenv("POSTTRAIN_DEBUG", raising=False)
    assert main(["sft", "--nonsense", "1"]) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert main(["sft", "--nonsense", "1", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("POSTTRAIN_DEBUG", "1")
    assert main(["sft", "--nonsense", "1"]) == 2
    assert "Traceback" in capsys.readouterr().err
