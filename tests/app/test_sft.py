"""`posttrain sft` from end to end on a tiny model: what is printed, what lies in the folder, how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import posttrain
from posttrain.app.assistant import load
from posttrain.app.cli import main
from posttrain.app.run import Run
from posttrain.core.errors import SettingsError, UserError

KEYS = {"step", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "trained_tokens", "tokens_per_second",
        "seconds"}


@pytest.fixture(scope="module")
def finished(tiny_model, rows, tmp_path_factory):
    """A full run of 12 updates -> (run, standard output)."""
    folder = tmp_path_factory.mktemp("runs") / "full"
    argv = ["sft", "--model", tiny_model, "--data", rows, "--method", "full", "--learning_rate", "3e-3", "--max_steps",
            "12", "--batch_size", "8", "--eval_split", "0.1", "--output_dir", folder]
    done = subprocess.run([sys.executable, "-m", "posttrain", *map(str, argv)], capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0, done.stderr
    return Run(folder), done.stdout


def test_everything_chosen_is_said_with_its_reason(finished):
    _, out = finished
    for part in ("chat template = plain: the tokenizer has no template", "device = cpu: ", "dtype = ",
                 "rows.json: 144 rows, format alpaca, 14 held out", "% of their tokens are trained",
                 "token by token", "⟦", "12 updates", "update 12/12", "eval_loss",
                 "ledger: rows read 96 = trained 96 + dropped 0", "tokens rendered"):
        assert part in out, part
    assert len(out.splitlines()) < 60


def test_the_end_names_commands_that_work(finished, capsys):
    run, out = finished
    tail = out[out.index("\nnext"):]
    assert f"posttrain chat {run.path} " in tail and f"posttrain data show {run.path} " in tail
    compare = next(line for line in tail.splitlines() if "compare" in line).partition("#")[0].split()
    assert compare[-2:] == ["--limit", "5"] and main([*compare[1:], "--max_new_tokens", "4"]) == 0
    assert "say red then red" in capsys.readouterr().out


def test_the_folder_is_complete(finished):
    run, _ = finished
    assert {"config.yaml", "ledger.json", "metrics.jsonl", "model", "run.json"} <= {p.name for p in run.path.iterdir()}
    assert len(run.metrics) == 12 and all(set(m) >= KEYS for m in run.metrics)
    assert run.metrics[-1]["loss"] < run.metrics[0]["loss"]
    rows = run.ledger["rows"]
    assert rows["read"] == rows["trained"] + sum(rows["dropped"].values()) == 96
    assert run.status["status"] == "finished" and run.config["batch_size"] == 8
    assert repr(run) == f"Run({str(run.path)!r})" and os.fspath(run) == str(run.path)


def test_the_run_answers(finished):
    run, _ = finished
    assert isinstance(run.chat("say red then blue", max_new_tokens=8), str)
    assert load(run.path).describe().endswith("template own")


def test_the_resolved_file_is_a_valid_input(finished, tmp_path, capsys):
    run, _ = finished
    assert main(["sft", str(run.path / "config.yaml")]) == 2
    said = capsys.readouterr().err
    assert "the output folder is in use" in said and "--resume" in said and str(run.path) in said
    assert main(["sft", str(run.path / "config.yaml"), "--output_dir", str(tmp_path / "again"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == str(tmp_path / "again") and found["metrics"][0]["loss"] == run.metrics[-1]["loss"]


def test_a_finished_run_is_not_resumed(finished, capsys):
    run, _ = finished
    assert main(["sft", "--output_dir", str(run.path), "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out


def test_from_python(tiny_model, rows, tmp_path):
    run = posttrain.sft(model=tiny_model, data=str(rows), output_dir=tmp_path / "run", max_steps=2, batch_size=4)
    assert run.model_path == tmp_path / "run" / "model" and len(run.metrics) == 2
    assert (run.model_path / "adapter_config.json").is_file()
    assert isinstance(posttrain.load(run.path).chat("say red", max_new_tokens=4), str)


def test_wrong_keys_from_python_are_shown_at_once():
    with pytest.raises(SettingsError) as caught:
        posttrain.sft(epochs=3, batch_size=0)
    text = str(caught.value)
    assert "use num_train_epochs" in text and "`batch_size` has no valid value" in text


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="this folder is no run"):
        Run(tmp_path)


def test_nothing_is_left_behind_by_a_run_that_never_began(tiny_model, tmp_path, capsys):
    bad = Path(tmp_path / "bad.jsonl")
    bad.write_text('{"instruction": "a", "output": "b"}\n{"instruction": \n')
    assert main(["sft", "--model", str(tiny_model), "--data", str(bad), "--output_dir", str(tmp_path / "run")]) == 2
    assert f"{bad}:2" in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_missing_model_and_missing_data_are_shown_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sft", "--model", "./absent", "--data", "rows.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "there is no such model folder" in said and "the data file does not exist" in said
    assert not list((tmp_path / "runs").iterdir())


def test_a_long_example_is_shown_around_its_first_trained_token(tiny_model):
    import io

    from rich.console import Console

    from posttrain.app.screen import print_example
    from posttrain.core.sequence import Row
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer

    spec = load_tokenizer(tiny_model)
    row = Row("conversation", "x.json:7", messages=[{"role": "user", "content": "say red " * 300},
                                                    {"role": "assistant", "content": "blue " * 300}])
    sequence = Renderer(spec, max_length=4096).render([row])[0].sequences[0]
    out = io.StringIO()
    print_example(Console(file=out, width=100), sequence, spec)
    assert f"x.json:7, token by token (200 of {len(sequence)} tokens)" in out.getvalue()
    assert "Assistant:⟦" in out.getvalue().replace("\n", "")
