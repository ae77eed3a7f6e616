"""What `posttrain sft` refuses, with exit code 2 and a message that says what to do; and what it prints otherwise."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from posttrain.app.cli import main
from posttrain.app.run import Run

pytestmark = pytest.mark.usefixtures("in_process")


@pytest.fixture
def sft(tiny_model, rows, tmp_path):
    def run(*flags, data=rows, model=tiny_model) -> int:
        return main(["sft", "--model", str(model), "--data", str(data), "--dtype", "float32", "--batch_size", "8",
                     "--output_dir", str(tmp_path / "run"), *map(str, flags)])
    return run


@pytest.fixture
def lines(tmp_path):
    """A JSONL file of these rows; text stands as it is."""
    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return path
    return write


def test_an_output_folder_in_use(sft, tmp_path, capsys):
    assert sft("--max_steps", 1) == 0
    assert sft("--max_steps", 1) == 2
    said = capsys.readouterr().err
    assert "the output folder is in use" in said and "found:    a run" in said
    assert f"go on with `posttrain sft --output_dir {tmp_path / 'run'} --resume`" in said
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    assert sft("--max_steps", 1) == 2
    said = capsys.readouterr().err
    assert "found:    other files" in said and "name another folder" in said
    assert (tmp_path / "run" / "thesis.txt").read_text() == "mine"


GOOD = {"prompt": "say red", "completion": "red"}


def test_a_malformed_row_in_the_middle(sft, lines, tmp_path, capsys):
    path = lines([GOOD] * 20 + ['{"prompt": "say'] + [GOOD] * 19)
    assert sft(data=path) == 2
    assert f"{path}:21" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert sft("--bad_rows", "skip", "--num_train_epochs", 2, data=path) == 0
    run = Run(tmp_path / "run")
    assert run.ledger["rows"] == {"read": 80, "trained": 78, "cut": 0, "dropped": {"malformed row": 2}}
    (listed,) = [json.loads(line) for line in (run.path / "rejected.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["line"]) == (str(path), 21) and listed["reason"]
    assert "dropped 2 (2 malformed row; see rejected.jsonl)" in capsys.readouterr().out


def test_all_rows_too_long(sft, lines, tmp_path, capsys):
    path = lines([{"prompt": "say it", "completion": "blue " * (20 + i)} for i in range(40)])
    assert sft("--max_length", 16, data=path) == 2
    said = capsys.readouterr().err
    assert "all rows are dropped: first exchange longer than max_length" in said and f"{path}:" in said
    named = int(said.split("set max_length: ")[1].split(",")[0])
    assert "which would keep 99 % of the rows" in said and not (tmp_path / "run").exists()
    assert sft("--max_length", named, "--max_steps", 2, data=path) == 0
    assert Run(tmp_path / "run").ledger["rows"]["trained"] == 16


def test_all_answers_empty(sft, lines, capsys):
    path = lines([{"prompt": f"say {i}", "completion": ""} for i in range(9)])
    assert sft(data=path) == 2
    said = capsys.readouterr().err
    assert "all rows are dropped: empty answer" in said and "9 of the first 9 rows" in said
    assert "name the column that holds the answers" in said


def test_a_key_of_another_tool_and_a_mistyped_one(sft, capsys):
    assert sft("--per_device_train_batch_size", 4, "--learning_rat", 1) == 2
    said = capsys.readouterr().err
    assert "use batch_size" in said and "did you mean `learning_rate`?" in said


def test_a_loss_that_is_not_finite(sft, rows, tmp_path, capsys):
    assert sft("--method", "full", "--learning_rate", "1e30", "--max_steps", 9, "--max_grad_norm", 0) == 2
    said = capsys.readouterr().err
    assert "of update 2 is not finite; the weights are as before it" in said and "found:    loss " in said
    assert "lower learning_rate" in said and "each of its rows does it alone" in said
    named = said.split("where:    ")[1].split("\n")[0]
    assert all(part.startswith(f"{rows}:") for part in named.split(", ")) and named.count(f"{rows}:") == 8
    run = Run(tmp_path / "run")
    assert len((run.path / "offending_rows.jsonl").read_text().splitlines()) == 8
    assert [p.name for p in run.checkpoints] == ["1"]  # what was learnt until then
    assert len(run.metrics) == 1 and run.status["status"] == "failed" and not run.model_path.exists()


def test_a_gradient_that_is_not_finite_stops_before_the_step(sft, tmp_path, capsys, monkeypatch):
    from posttrain.train import loop

    stepped, real = [], loop.MasterAdamW.step
    monkeypatch.setattr(loop.MasterAdamW, "norm", lambda self: torch.tensor(float("inf")))
    monkeypatch.setattr(loop.MasterAdamW, "step", lambda self, *given: stepped.append(given[0]) or real(self, *given))
    assert sft("--max_steps", 2) == 2
    assert "the gradient of update 1 is not finite" in capsys.readouterr().err and not any(stepped)  # 0: the rehearsal


def test_a_base_with_broken_weights(sft, tiny_model, tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(tiny_model, folder)
    held = load_file(folder / "model.safetensors")
    held["model.norm.weight"][3] = float("nan")
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    assert sft(model=folder) == 2
    said = capsys.readouterr().err
    assert "the model gives no finite log-probabilities" in said and str(folder) in said
    assert not (tmp_path / "run").exists()


def test_json_is_all_that_stands_on_standard_output(sft, tmp_path, capsys):
    assert sft("--json", "--max_steps", 2, "--eval_split", 0.1) == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert list(found) == ["run", "model", "status", "ledger", "metrics"] and found["run"] == str(tmp_path / "run")
    assert found["status"]["status"] == "finished" and found["ledger"]["rows"]["trained"] == 16
    assert "update 2/2" in said.err and "posttrain chat" in said.err


def test_plain_output_is_tens_of_lines(sft, capsys):
    assert sft("--max_steps", 150, "--eval_split", 0.02, "--eval_steps", 2) == 0
    out = capsys.readouterr().out
    assert 30 < len(out.splitlines()) < 120 and "\r" not in out and "\x1b" not in out


def test_a_share_on_the_only_data(sft, lines, capsys):
    path = lines([{"prompt": "a", "completion": "b"}] * 4)
    assert sft(data=f"{path}@0.1") == 2
    said = capsys.readouterr().err
    assert "the only data source asks for a share, so nothing says how long an epoch is" in said
    assert f"found:    {path}@0.1\n" in said and f"--data ROWS --data {path}@0.1" in said
