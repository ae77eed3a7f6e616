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
