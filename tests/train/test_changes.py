"""What changed between two starts of a run is shown; what breaks exactness needs allow_changes; nothing is silent."""

from __future__ import annotations

import gzip
import json
import os
import shutil

import pytest

import posttrain
from posttrain.app.run import Run
from posttrain.core import ranks
from posttrain.core.config import make_settings
from posttrain.core.errors import SettingsError, UserError
from posttrain.data.read import open_source
from posttrain.train import conditions
from posttrain.train.conditions import code_versions
from posttrain.train.record import Record
from posttrain.train.restore import newest_checkpoint

pytestmark = pytest.mark.usefixtures("in_process_module")


ROWS = "".join(json.dumps({"instruction": f"q{i}", "output": f"a{i}"}) + "\n" for i in range(40))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    path.write_text(ROWS)
    return path


@pytest.fixture(autouse=True)
def data_as_before(data):
    """What a test makes of the rows is taken back."""
    yield
    if data.read_text() != ROWS:
        data.write_text(ROWS)


@pytest.fixture
def asked(tiny_model, data, tmp_path):
    return {"model": tiny_model, "data": str(data), "max_steps": 4, "batch_size": 8, "dtype": "float32",
            "save_steps": 1, "save_total_limit": 9, "output_dir": tmp_path / "run"}


@pytest.fixture(scope="module")
def trained(tiny_model, data, tmp_path_factory, in_process_module):
    return posttrain.sft(model=tiny_model, data=str(data), max_steps=4, batch_size=8, dtype="float32", save_steps=1,
                         save_total_limit=9, output_dir=tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of one run, to be changed."""
    return Run(shutil.copytree(trained.path, tmp_path / "run"))


def stop_at(run, step: int):
    """The run as if it had been killed during the update after `step`."""
    shutil.rmtree(run.model_path)
    (run.path / "run.json").unlink()
    for path in run.checkpoints[step:]:
        shutil.rmtree(path)
    return run.path


def weights(run) -> bytes:
    return (run.model_path / "adapter_model.safetensors").read_bytes()


def test_the_data_changed(run, data, capsys):
    whole, folder = weights(run), stop_at(run, 2)
    before = data.read_text()
    data.write_text(before.replace("a39", "b39"))
    metrics = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(SettingsError) as e:
        posttrain.sft(output_dir=folder, resume=True)
    said = str(e.value)
    assert "the data changed since the checkpoint" in said and f"where:    {data}" in said
    assert "found:    40 rows, sha256" in said and "put the old file back, or go on all the same" in said
    assert (folder / "metrics.jsonl").read_bytes() == metrics  # nothing was touched
    data.write_text(before)  # another time stamp, the same bytes
    assert weights(posttrain.sft(output_dir=folder, resume=True)) == whole
    data.write_text(before + '{"instruction": "q", "output": "a"}\n')
    posttrain.sft(output_dir=stop_at(run, 2), resume=True, allow_changes=True)
    said = capsys.readouterr().err
    assert f"the data changed since the checkpoint: {data} is 41 rows, sha256" in said and "40 rows, sha256" in said
    assert run.config["allow_changes"] is False and run.status["status"] == "finished"


def test_the_data_changes_during_the_run(asked, data, monkeypatch):
    from posttrain.train import loop

    monkeypatch.setattr("posttrain.data.updates.HEAD_ROWS", 8)  # the rest is read when it is needed
    whole, before, real = weights(posttrain.sft(**asked)), data.read_text(), loop.accumulate

    def accumulate(*given):
        if given[-1] == 3:  # whole rows more: no offset into the file is wrong, and still it is not the same file
            data.write_text(before + '{"instruction": "q", "output": "a"}\n')
        return real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "accumulate", accumulate)
        with pytest.raises(UserError, match="the file changed while it was being read") as e:
            posttrain.sft(**asked | {"save_steps": 2, "output_dir": asked["output_dir"].with_name("changed")})
    assert e.value.where == str(data) and "put the file back as it was, and go on with resume" in e.value.fix
    run = Run(asked["output_dir"].with_name("changed"))
    assert [p.name for p in run.checkpoints] == ["2", "3"]  # the last whole update, beside the one that was asked for
    with pytest.raises(SettingsError, match="the data changed since the checkpoint"):
        posttrain.sft(output_dir=run.path, resume=True)
    data.write_text(before)
    assert weights(posttrain.sft(output_dir=run.path, resume=True)) == whole


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_a_file_held_in_memory_is_watched_too(tmp_path, pack):
    path = tmp_path / ("a.jsonl.gz" if pack is gzip.compress else "a.jsonl")
    path.write_bytes(pack(b'{"prompt": "a", "completion": "b"}\n'))
    source = open_source(str(path))
    assert source[0].values == {"prompt": "a", "completion": "b"} and len(source.files()[0]["sha256"]) == 64
    path.write_bytes(pack(b'{"prompt": "a", "completion": "c"}\n'))
    os.utime(path, ns=(1, 1))
    for read in (lambda: source[0], lambda: open_source(str(path)) and source.parts[0].sha256()):
        with pytest.raises(UserError, match="the file changed while it was being read"):
            read()


@pytest.mark.parametrize(("function", "value", "where"), [
    ("code_versions", lambda *_: code_versions() | {"torch": "9.9"}, "torch"),
    ("layout_of", lambda *_: {"pack_tokens": 4096, "threads": 99}, "threads")], ids=["code", "threads"])
def test_the_code_or_the_layout_changed(run, monkeypatch, capsys, function, value, where):
    whole, folder = weights(run), stop_at(run, 2)
    with monkeypatch.context() as patch:
        patch.setattr(f"posttrain.train.session.{function}", value)
        with pytest.raises(SettingsError) as e:
            posttrain.sft(output_dir=folder, resume=True)
        assert f"where:    {where}\n" in str(e.value) and "changed since the checkpoint" in str(e.value)
        assert "or go on all the same with allow_changes" in str(e.value)
        posttrain.sft(output_dir=folder, resume=True, allow_changes=True)
    assert f": {where} is " in capsys.readouterr().err
    assert weights(run) == whole  # neither was real


def test_another_layout_is_equal_to_rounding(run, capsys):
    folder = stop_at(run, 2)
    with pytest.raises(SettingsError) as e:
        posttrain.sft(output_dir=folder, resume=True, pack_tokens=2048)
    assert "where:    pack_tokens\n  found:    2048\n  expected: 4096" in str(e.value)
    posttrain.sft(output_dir=folder, resume=True, pack_tokens=2048, allow_changes=True)
    assert "not to the bit: pack_tokens is 2048, 4096 before" in capsys.readouterr().err


def test_keys_that_may_change_and_keys_that_may_not(run, capsys):
    folder = stop_at(run, 2)
    with pytest.raises(SettingsError, match="a resumed run keeps its settings") as e:
        posttrain.sft(output_dir=folder, resume=True, learning_rate=1e-5)
    assert "or change it all the same with allow_changes" in str(e.value)
    with pytest.raises(SettingsError) as e:
        posttrain.sft(output_dir=folder, resume=True, allow_changes=True, lora_r=4)
    assert "where:    lora_r" in str(e.value) and "allow_changes" not in str(e.value)
    posttrain.sft(output_dir=folder, resume=True, learning_rate=1e-5, allow_changes=True)
    assert "learning_rate = 1e-05: 0.0002 before; no longer the run that it was" in capsys.readouterr().err
    assert run.config["learning_rate"] == 1e-5 and run.metrics[-1]["learning_rate"] < 1e-5
    with pytest.raises(SettingsError, match="allow_changes changes nothing without resume"):
        posttrain.sft(output_dir=folder, allow_changes=True)


def test_the_same_command_with_resume_begins_and_goes_on(asked, tmp_path, capsys):
    """A scheduler that starts the same line again and again needs no other line for the first time."""
    asked |= {"learning_rate": None, "resume": True}
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)  # what a start that was killed early leaves
    (tmp_path / "run" / ".running").touch()
    run = posttrain.sft(**asked)
    assert f"there is no run in {run.path} yet: starting at update 0" in capsys.readouterr().err
    whole, folder = weights(run), stop_at(run, 2)
    assert weights(posttrain.sft(**asked)) == whole
    assert f"resumed from {folder}/checkpoints/2 (update 2)" in capsys.readouterr().err


def test_no_good_checkpoint_is_no_silent_new_start(run, capsys):
    folder = stop_at(run, 2)
    for path in run.checkpoints:
        os.truncate(path / "weights.safetensors", 100)
    kept = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    with pytest.raises(UserError, match="no checkpoint of this run can be used") as e:
        posttrain.sft(output_dir=folder, resume=True)
    assert e.value.where == str(folder / "checkpoints") and e.value.found.startswith("2: weights.safetensors has 100 b")
    assert "\n1: weights" in e.value.found and "begin again at update 0" in e.value.fix
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == kept
    shutil.rmtree(folder / "checkpoints")
    posttrain.sft(output_dir=folder, resume=True)
    assert "no checkpoint yet: starting at update 0" in capsys.readouterr().err


def test_a_checkpoint_of_another_model_is_refused(run, monkeypatch):
    folder = stop_at(run, 2)
    config = (folder / "config.yaml").read_text().replace("- all-linear", "- q_proj")
    (folder / "config.yaml").write_text(config)
    with pytest.raises(SettingsError, match="a resumed run keeps its settings") as e:
        posttrain.sft(output_dir=folder, resume=True, allow_changes=True)
    assert "where:    lora_target_modules\n  found:    ['q_proj']" in str(e.value)
    assert f"expected: ['all-linear'], as in {folder}/checkpoints/2" in str(e.value)
    monkeypatch.setattr("posttrain.train.restore.differences", lambda *_: [])
    with pytest.raises(UserError, match="the checkpoint is not one of this model") as e:
        posttrain.sft(output_dir=folder, resume=True)
    assert "tensors differ, the first: " in e.value.found


def test_an_edited_config_is_seen_by_the_checkpoint(run, data):
    """All that changed is said at once: a key, the data and the code."""
    folder = stop_at(run, 2)
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("learning_rate: 0.0002", "learning_rate: 0.05"))
    data.write_text(ROWS.replace("a39", "b39"))
    with pytest.raises(SettingsError) as e:
        posttrain.sft(output_dir=folder, resume=True, weight_decay=0.1)
    said = str(e.value)
    assert f"where:    learning_rate\n  found:    0.05\n  expected: 0.0002, as in {folder}/checkpoints/2\n" in said
    assert "where:    weight_decay\n  found:    0.1\n" in said and f"where:    {data}\n" in said
    assert len(e.value.errors) == 3


def test_a_change_that_never_reached_a_checkpoint_is_no_part_of_the_run(run, monkeypatch, capsys):
    """Killed right after it was allowed, it stands in config.yaml, and would be taken in silence."""
    whole, folder = weights(run), stop_at(run, 2)
    with monkeypatch.context() as patch:
        patch.setattr("posttrain.train.loop.accumulate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            posttrain.sft(output_dir=folder, resume=True, allow_changes=True, learning_rate=0.05)
    assert run.config["learning_rate"] == 0.05
    with pytest.raises(SettingsError, match="a resumed run keeps its settings") as e:
        posttrain.sft(output_dir=folder, resume=True)
    assert [error.where for error in e.value.errors] == ["learning_rate"]
    assert weights(posttrain.sft(output_dir=folder, resume=True, learning_rate=2e-4)) == whole


def test_a_damaged_newest_checkpoint_does_not_decide_what_is_in_force(run, monkeypatch):
    folder = stop_at(run, 2)
    state = json.loads((folder / "checkpoints" / "2" / "state.json").read_text())
    state["in_force"] = {"pack_tokens": 77, "gradient_checkpointing": True}
    (folder / "checkpoints" / "2" / "state.json").write_text(json.dumps(state))
    posttrain.sft(output_dir=folder, resume=True)
    assert run.config["pack_tokens"] == 4096 and not run.config["gradient_checkpointing"]


def test_all_processes_go_on_from_the_checkpoint_of_the_first(tmp_path, monkeypatch):
    settings = make_settings({"resume": True, "output_dir": str(tmp_path)})
    monkeypatch.setattr(ranks, "first", lambda: False)
    monkeypatch.setattr(ranks, "largest", lambda values: [5.0])
    monkeypatch.setattr(ranks, "any_of", bool)
    with pytest.raises(UserError, match="the processes of this run see different checkpoints") as e:
        newest_checkpoint(settings, tmp_path, print)
    assert e.value.found == "the first process sees 5, another does not"
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    (tmp_path / "checkpoints" / "5" / "manifest.json").touch()
    assert newest_checkpoint(settings, tmp_path, print) == tmp_path / "checkpoints" / "5"
    monkeypatch.setattr(ranks, "any_of", lambda flag: True)
    with pytest.raises(ranks.LostError, match="the first process of this run finds no good checkpoint"):
        newest_checkpoint(settings, tmp_path, print)


def test_a_checkpoint_is_verified_once(run, monkeypatch):
    from posttrain.model import checkpoint

    folder, asked, real = stop_at(run, 2), [], checkpoint.verify
    monkeypatch.setattr(checkpoint, "verify", lambda path: asked.append(path.name) or real(path))
    posttrain.sft(output_dir=folder, resume=True)
    assert asked == ["2"]


def test_what_was_logged_before_stays_as_it_is(tmp_path):
    record, path, said = Record(tmp_path), tmp_path / "metrics.jsonl", []
    lines = [b'{"step":  1, "odd": "\xe2\x80\xa8"}\n', b'{"step": 2}\n', b'{"step": 3}\n', b'{"step']
    path.write_bytes(b"".join(lines))
    record.rewind(2, said.append)
    assert path.read_bytes() == b"".join(lines[:2]) and not said
    path.write_bytes(lines[0] + b"\0\0\0\0\n" + lines[2])  # as a power cut may leave it
    record.rewind(3, said.append)
    assert path.read_bytes() == lines[0]
    assert said == ["metrics.jsonl ends at update 1: the lines up to update 3 are lost"]


def test_the_source_is_part_of_the_version(tmp_path, monkeypatch):
    assert set(code_versions()) == {"posttrain", "torch", "transformers", "peft", "tokenizers"}
    one = code_versions()["posttrain"]
    (tmp_path / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(conditions, "_ROOT", tmp_path)
    conditions._source.cache_clear()
    other = code_versions()["posttrain"]
    (tmp_path / "a.py").write_text("x = 2\n")
    conditions._source.cache_clear()
    third = code_versions()["posttrain"]
    (tmp_path / "a.jinja").write_text("{{ x }}")
    conditions._source.cache_clear()
    assert len({one, other, third, code_versions()["posttrain"]}) == 4 and ", source " in one
    conditions._source.cache_clear()
