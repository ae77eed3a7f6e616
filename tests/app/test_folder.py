"""The run's folder: what a start may take away, that one process works there at a time, and damaged files in it."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import signal

import pytest

import posttrain
from posttrain.app.cli import main
from posttrain.app.run import Run
from posttrain.builtin import builtin_model_path
from posttrain.core.errors import UserError
from posttrain.core.status import read_status

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def sft(tiny_model, rows, tmp_path):
    """Run `posttrain sft` on the tiny pair -> exit code; flags are added to these."""
    def run(*flags, folder="run", model=("--model", tiny_model)) -> int:
        return main([*map(str, ["sft", *model, "--data", rows, "--dtype", "float32", "--batch_size", 8,
                                "--max_steps", 2, "--output_dir", tmp_path / folder, *flags])])
    return run


def everything(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in sorted(folder.rglob("*"))}


def test_a_users_files_stay(sft, tmp_path, capsys):
    """Even under the names that a run gives its own."""
    (theirs := tmp_path / "run" / "tokenizer").mkdir(parents=True)
    for path in builtin_model_path().glob("tokenizer*"):
        shutil.copy(path, theirs)
    (theirs / "notes.txt").write_text("x")
    before = everything(tmp_path)
    for flags in (("--tokenizer", theirs), (), ("--resume",)):
        assert sft(*flags) == 2
        said = capsys.readouterr().err
        assert said == (f"error: the output folder is in use\n  where:    {tmp_path / 'run'}\n  found:    other files\n"
                        "  fix:      name another folder\n")
    shutil.rmtree(theirs)
    (shape := tmp_path / "run" / "architecture.yaml").write_text("hidden_size: 64")
    assert sft("--model_config", shape, model=()) == 2
    assert "found:    other files" in capsys.readouterr().err and shape.read_text() == "hidden_size: 64"
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["architecture.yaml"] and len(before) == 5


def test_a_start_that_fails_leaves_the_folder_as_it_was(sft, tmp_path, monkeypatch):
    """A new one goes, an empty one stays, and of a later failure too nothing is left."""
    assert sft("--model", tmp_path / "nowhere", model=(), folder="new") == 2 and not (tmp_path / "new").exists()
    (tmp_path / "run").mkdir()
    assert sft("--model", tmp_path / "nowhere", model=()) == 2 and list((tmp_path / "run").iterdir()) == []
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.app.launch.open_reporters", lambda *given: signal.raise_signal(signal.SIGINT))
        assert sft() == 130 and list((tmp_path / "run").iterdir()) == []
        assert sft(folder="new") == 130 and not (tmp_path / "new").exists()
    assert sft() == 0 and not (tmp_path / "run" / ".running").exists()


def test_what_a_killed_start_left_is_in_nobodys_way(sft, tmp_path, capsys):
    """Proved ours by the file that it left; an input that the user names in there is used and stays."""
    (shape := tmp_path / "run" / "architecture.yaml").parent.mkdir()
    shape.write_text("model_type: qwen3\nhidden_size: 32\nintermediate_size: 64\nnum_hidden_layers: 1\n"
                     "num_attention_heads: 2\nnum_key_value_heads: 1\nhead_dim: 16\nvocab_size: 300\n")
    (tmp_path / "run" / ".running").write_text("process 1 on elsewhere")
    (tmp_path / "run" / "tokenizer").mkdir()
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").write_text("half")
    flags = ("--model_config", shape, "--method", "full", "--resume")
    assert sft(*flags, "--tokenizer", tmp_path / "nowhere", model=()) == 2 and "nowhere" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["architecture.yaml"]
    (tmp_path / "run" / ".running").touch()
    assert sft(*flags, model=()) == 0, capsys.readouterr().err
    assert shape.read_text().startswith("model_type: qwen3") and Run(tmp_path / "run").model_path.is_dir()


@pytest.mark.parametrize("flags", [(), ("--resume",), ("--processes", "2"), ("--processes", "2", "--resume")])
def test_a_second_start_is_one_error(sft, tmp_path, capsys, flags):
    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".running").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        other.write("process 4711 on box")
        other.flush()
        before = everything(tmp_path)
        assert sft(*flags) == 2
        said = capsys.readouterr().err
        assert said == (f"error: the output folder is in use\n  where:    {tmp_path / 'run'}\n"
                        "  found:    process 4711 on box works there now\n"
                        "  fix:      let it end or stop it, or name another folder\n")
        assert everything(tmp_path) == before
    assert sft() == 0  # its holder is gone: no more is needed than that


def test_a_run_says_who_it_is(sft, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("posttrain.app.launch.tell_data",
                        lambda *given: seen.append((tmp_path / "run" / ".running").read_text()))
    assert sft() == 0 and seen == [f"process {os.getpid()} on {platform.node()}"]


@pytest.mark.parametrize("text", ["", '{"status": "run', "[]", "\x00\x00"])
def test_a_damaged_status_is_told_and_written_anew(sft, tmp_path, capsys, text):
    assert sft("--save_steps", 1) == 0
    whole = everything(tmp_path / "run" / "model")
    (path := tmp_path / "run" / "run.json").write_text(text)
    assert main(["sft", "--output_dir", str(tmp_path / "run"), "--resume"]) == 0
    said = capsys.readouterr().out
    assert said.count(f"{path} is damaged: it is written anew\n") == 1 and "(update 1)" in said
    assert json.loads(path.read_text())["status"] == "finished" and everything(tmp_path / "run" / "model") == whole


def test_settings_that_are_lost_are_an_error(sft, tmp_path, capsys):
    assert sft() == 0
    path, resume = tmp_path / "run" / "config.yaml", ["sft", "--output_dir", str(tmp_path / "run"), "--resume"]
    capsys.readouterr()
    for text, found in (("", "no keys"), ("seed: 1\n", "no objective")):
        path.write_text(text)
        assert main(resume) == 2
        assert capsys.readouterr().err == (
            f"error: the settings of this run are lost\n  where:    {path}\n  found:    {found}\n"
            "  expected: the keys that the run began with\n"
            "  fix:      bring config.yaml back from a copy, or name another folder\n")
    with pytest.raises(UserError, match="the settings of this run are lost"):
        posttrain.sft(output_dir=tmp_path / "run", resume=True)


def test_finished_is_the_last_word(sft, tmp_path, capsys, monkeypatch):
    """Whatever ends a run between its model and that word, a resume makes what is missing."""
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.eval.report.write_report", lambda folder: signal.raise_signal(signal.SIGTERM))
        assert sft() == 143
    run = Run(tmp_path / "run")
    assert run.status["status"] == "exporting" and [p.name for p in run.checkpoints] == ["2"]
    model = everything(run.model_path)
    said = capsys.readouterr()
    assert said.out.endswith(f"stopped at once; go on with: posttrain sft --output_dir {run.path} --resume\n")
    resume = ["sft", "--output_dir", str(run.path), "--resume"]
    assert main(resume) == 0 and run.status["status"] == "finished" and (run.path / "report.html").is_file()
    assert f"sft, method lora, model {run.config['model']}: finished at update 2." in (
        run.path / "report.html").read_text()
    assert main(resume) == 0 and f"already finished (update 2): {run.path}" in capsys.readouterr().out

    shutil.rmtree(run.model_path)
    assert main(resume) == 0 and everything(run.model_path) == model
    assert "the model of this finished run is gone: it is made again" in capsys.readouterr().out
    assert read_status(run.path)["status"] == "finished"
