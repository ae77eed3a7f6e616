"""A loss or gradient that is no number stops the run before the update, and the rows that do it are found."""

from __future__ import annotations

import json
import math

import pytest
import torch

import posttrain
from posttrain.app.run import Run
from posttrain.core.errors import UserError
from posttrain.core.pack import make_pack
from posttrain.core.sequence import Sequence
from posttrain.train.nonfinite import atoms
from posttrain.train.objectives.sft import SFT

pytestmark = pytest.mark.usefixtures("in_process")
LOSS = SFT.loss


@pytest.fixture
def run(tiny_model, tmp_path):
    """Twelve rows in order, four an update, in packs of several; row 7 (line 7, update 2) says `bird`."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"instruction": f"say {i}", "output": "bird" if i == 6 else f"it is {i}"}) + "\n"
                            for i in range(12)))

    def go(name="run", **values):
        asked = {"model": tiny_model, "data": str(path), "batch_size": 4, "num_train_epochs": 1, "shuffle": False,
                 "dtype": "float32", "output_dir": tmp_path / name}
        return posttrain.sft(**(asked | values))
    return go


def bird(pack) -> int:
    """How many trained tokens of a pack belong to rows of some length that only the row of the bird has."""
    return sum("rows.jsonl:7" in o for o in pack.origins)


def broken(kind: str):
    def loss(self, out, pack):
        value, more = LOSS(self, out, pack)
        if not bird(pack):
            return value, more
        if kind == "loss":
            return value * math.inf, more
        return value + 0 * (value.detach() - value).sqrt(), more  # sqrt at 0: the value is right, the slope is not
    return loss


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_the_row_is_found_written_and_named(run, monkeypatch, tmp_path, kind):
    with monkeypatch.context() as patch:
        patch.setattr(SFT, "loss", broken(kind))
        with pytest.raises(UserError, match=f"the {kind} of update 2 is not finite; the weights are as before it") as e:
            run()
    assert e.value.where == f"{tmp_path}/rows.jsonl:7" and "1 of its 4 rows do it alone" in e.value.found
    assert f"`posttrain data show {tmp_path}/rows.jsonl --row 7`" in e.value.fix
    assert f"look at these rows in {tmp_path}/run/offending_rows.jsonl" in e.value.fix
    [line] = [json.loads(line) for line in (tmp_path / "run" / "offending_rows.jsonl").read_text().splitlines()]
    assert (line["step"], line["file"], line["line"]) == (2, str(tmp_path / "rows.jsonl"), 7)
    assert "bird" in line["text"] and len(line["ids"]) == line["tokens"] > line["trained_tokens"] > 0
    assert line["loss"] == "inf" if kind == "loss" else line["loss"] > 0 and line["grad_norm"] == "nan"
    stopped = Run(tmp_path / "run")
    assert stopped.status["status"] == "failed" and len(stopped.metrics) == 1
    assert [p.name for p in stopped.checkpoints] == ["1"]
    again, whole = posttrain.sft(output_dir=stopped.path, resume=True), run("whole")  # the fault is gone: on exactly
    names = {p.name: p.read_bytes() for p in whole.model_path.glob("*.safetensors")}
    assert {p.name: p.read_bytes() for p in again.model_path.glob("*.safetensors")} == names
    assert again.ledger == whole.ledger


def test_none_alone(run, monkeypatch, tmp_path):
    def loss(self, out, pack):
        value, more = LOSS(self, out, pack)
        return (value * math.nan if len(pack.origins) > 1 else value), more

    monkeypatch.setattr(SFT, "loss", loss)
    with pytest.raises(UserError, match="the loss of update 1 is not finite") as e:
        run()
    assert "none of its rows does it alone" in e.value.found and e.value.where.count("rows.jsonl:") == 4
    assert "lower learning_rate, or set dtype: float32" in e.value.fix
    assert not (tmp_path / "run" / "checkpoints").exists()  # nothing was learnt yet


def test_a_pack_taken_apart():
    def sequence(ids, origin, number):
        ids = torch.tensor(ids).numpy()
        return Sequence(ids, torch.ones(len(ids)).numpy(), None, origin, 0, number=number, facts={"score": number / 2})

    rows = [sequence([1, 2, 3], "a:1", 0), sequence([4, 5], "a:1", 1), sequence([6, 7, 8, 9], "a:2", 2)]
    pack = make_pack(rows, [2, 1])
    pack.columns["reference_T"] = torch.arange(9.0)
    pair, single = atoms(pack)
    for part, alone in ((pair, make_pack(rows[:2], [2])), (single, make_pack(rows[2:], [1]))):
        for name in ("ids_T", "positions_T", "targets_T", "weights_T"):
            assert torch.equal(getattr(part, name), getattr(alone, name)), name
        assert (part.bounds, part.origins, part.atoms, part.numbers) == (alone.bounds, alone.origins, alone.atoms,
                                                                         alone.numbers)
        assert torch.equal(part.columns["score"], alone.columns["score"])
    assert single.columns["reference_T"].tolist() == [5, 6, 7, 8]
