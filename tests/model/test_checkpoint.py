"""Checkpoints are whole or absent, verified, and never the only copy that is removed."""

import errno
import json

import pytest
import torch

from posttrain.core.errors import UserError
from posttrain.model import checkpoint
from posttrain.model.checkpoint import latest_checkpoint, list_checkpoints, load_checkpoint, save_checkpoint, verify


def tensors(value=1.0):
    return {"weights": {"a": torch.full((3, 4), value), "half": torch.ones(5, dtype=torch.bfloat16)},
            "optimizer": {"exp_avg.a": torch.arange(12.0).view(3, 4), "scalar": torch.tensor(float("nan"))}}


def test_comes_back_as_it_was(tmp_path):
    path = save_checkpoint(tmp_path, 7, tensors(), {"step": 7}, keep=2)
    assert path == tmp_path / "7" and verify(path) == ""
    files, state = load_checkpoint(path)
    assert state == {"step": 7}
    assert torch.equal(files["weights"]["a"], torch.full((3, 4), 1.0))
    assert files["weights"]["half"].dtype == torch.bfloat16
    assert files["optimizer"]["scalar"].isnan() and not list(tmp_path.glob(".*"))


def test_only_the_newest_are_kept(tmp_path):
    for step in (1, 2, 10):
        save_checkpoint(tmp_path, step, tensors(), {}, keep=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["2", "10"]


@pytest.mark.parametrize(("damage", "said"), [
    (lambda f: f.write_bytes(f.read_bytes()[:-3]), "bytes instead of"),
    (lambda f: f.write_bytes(f.read_bytes()[:-1] + b"\xff"), "the checksum of weights.safetensors differs"),
    (lambda f: f.unlink(), "weights.safetensors is missing")], ids=["truncated", "flipped", "missing"])
def test_a_damaged_one_is_skipped_and_named(tmp_path, damage, said):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, tensors(), {"step": step}, keep=2)
    damage(tmp_path / "2" / "weights.safetensors")
    path, skipped = latest_checkpoint(tmp_path)
    assert path == tmp_path / "1" and len(skipped) == 1 and said in skipped[0] and str(tmp_path / "2") in skipped[0]


@pytest.mark.parametrize("keep", [1, 2])
def test_a_good_one_never_goes_before_a_damaged_one(tmp_path, keep):
    """Gone on from 1, because 4 is damaged: what is saved next is kept, and 4 is not counted."""
    save_checkpoint(tmp_path, 1, tensors(), {}, keep=2)
    save_checkpoint(tmp_path, 4, tensors(), {}, keep=2)
    (tmp_path / "4" / "state.json").unlink()
    save_checkpoint(tmp_path, 3, tensors(), {}, keep=keep)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["1", "3"][-keep:]
    (tmp_path / "3" / "state.json").unlink()
    save_checkpoint(tmp_path, 3, tensors(), {}, keep=keep)  # a damaged one of the same step is replaced
    assert verify(tmp_path / "3") == ""


def test_a_good_one_is_not_written_again(tmp_path):
    path = save_checkpoint(tmp_path, 3, tensors(), {}, keep=1)
    before = {p: p.stat().st_ino for p in path.iterdir()}
    save_checkpoint(tmp_path, 3, tensors(), {}, keep=1)
    assert {p: p.stat().st_ino for p in path.iterdir()} == before


@pytest.mark.parametrize(("text", "said"), [
    ("{", "its manifest cannot be read"), ("[]", "its manifest cannot be read"), ('{"step": 2}', "cannot be read"),
    ('{"step": 3, "files": {}}', "its manifest is that of update 3"),
    ('{"step": 2, "files": {}}', "its manifest does not list its files"), (None, "manifest.json is missing")])
def test_a_manifest_that_is_none(tmp_path, text, said):
    path = save_checkpoint(tmp_path, 2, tensors(), {}, keep=1)
    (path / "manifest.json").unlink() if text is None else (path / "manifest.json").write_text(text)
    assert said in verify(path)


def test_every_bit_of_a_small_checkpoint_counts(tmp_path):
    path = save_checkpoint(tmp_path, 2, {"weights": {"a": torch.ones(2)}}, {"step": 2}, keep=1)
    for file in path.iterdir():
        whole = file.read_bytes()
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1:])
            assert verify(path) or json.loads(file.read_bytes()) == json.loads(whole), (file.name, i)
        file.write_bytes(whole)
    assert verify(path) == ""


def test_tensors_are_read_one_at_a_time(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, 2, tensors(), {}, keep=1)
    files, _ = load_checkpoint(path)
    opened, real = [], checkpoint.safe_open
    monkeypatch.setattr(checkpoint, "safe_open", lambda *a: opened.append(a) or real(*a))
    assert set(files["weights"]) == {"a", "half"} and len(files["weights"]) == 2 and not opened
    files["weights"]["a"].zero_()
    assert files["weights"]["a"].sum() == 12 and len(opened) == 2  # a copy each time
    with pytest.raises(KeyError):
        files["weights"]["b"]


def test_a_half_written_one_has_no_number(tmp_path):
    save_checkpoint(tmp_path, 1, tensors(), {}, keep=2)
    (tmp_path / ".2.partial").mkdir()
    assert latest_checkpoint(tmp_path)[0] == tmp_path / "1"
    assert latest_checkpoint(tmp_path / "none") == (None, [])


def test_no_space_left_is_one_clear_error_and_the_old_one_stays(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, tensors(), {}, keep=1)

    def full(held, path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="no space left on the disk") as e:
        save_checkpoint(tmp_path, 2, tensors(), {}, keep=1)
    assert "GB free" in e.value.found and "the last complete checkpoint is good" in e.value.fix
    assert [p.name for p in tmp_path.iterdir()] == ["1"] and verify(tmp_path / "1") == ""


def test_what_is_on_disk_is_compared_with_memory(tmp_path, monkeypatch):
    real = checkpoint.save_file

    def lossy(held, path):
        real({n: t * 0 if n == "a" else t for n, t in held.items()}, path)

    monkeypatch.setattr(checkpoint, "save_file", lossy)
    with pytest.raises(UserError, match="writing failed"):
        save_checkpoint(tmp_path, 1, tensors(), {}, keep=1)
    assert list_checkpoints(tmp_path) == []


def test_the_manifest_lists_sizes_and_checksums(tmp_path):
    path = save_checkpoint(tmp_path, 3, tensors(), {"x": 1}, keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["step"] == 3 and sorted(manifest["files"]) == ["optimizer.safetensors", "state.json",
                                                                   "weights.safetensors"]
    assert manifest["files"]["state.json"] == {"bytes": (path / "state.json").stat().st_size,
                                               "sha256": checkpoint.sha256(path / "state.json")}
