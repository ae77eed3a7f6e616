"""`posttrain eval` from end to end on tiny models: what is printed and written, the gate, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil

import pytest
from safetensors.torch import load_file, save_file

from posttrain.app.cli import main
from posttrain.eval.figures import FIGURES

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


@pytest.fixture(scope="module")
def worse(tiny_model, tmp_path_factory):
    """The tiny model with other weights in its last layer."""
    folder = tmp_path_factory.mktemp("models") / "worse"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    name = next(n for n in weights if "layers.1.mlp.down_proj" in n)
    save_file(weights | {name: weights[name] * -9}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "prose.txt"
    path.write_text("say red then green\n\nsay blue then two\n")
    return path


def run(*argv) -> int:
    return main(["eval", *map(str, argv), "--device", "cpu", "--dtype", "float32"])


def test_two_models_one_table(tiny_model, worse, rows, tmp_path, capsys):
    assert run(tiny_model, worse, "--data", rows, "--limit", "12", "--max_new_tokens", "4", "--output_dir",
               tmp_path / "out", "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert found == json.loads((tmp_path / "out" / "eval.json").read_text())
    one, two = found["models"]
    assert (one["model"], two["model"]) == (str(tiny_model), str(worse)) and set(FIGURES) < set(one)
    assert set(one["perplexity"]) == {"value", "low", "high"}
    gap = two["perplexity"]["value"] - one["perplexity"]["value"]
    assert two["perplexity"]["difference"]["value"] == pytest.approx(gap)
    assert one["perplexity"]["value"] == pytest.approx(math.exp(one["answer_loss"]["value"]))
    assert found["rows"] == {"read": 12, "used": 12, "with_answers": 12, "dropped": {}} and found["gate"] is None
    lines = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == 12 and lines[0]["reference"] == "red red." and len(lines[0]["models"]) == 2
    for part in ("(baseline)", "perplexity", "ROUGE-L", "p=", "12 of 12 judged", "sacrebleu's tokenizer 13a",
                 "written: "):
        assert part in err, part


def test_the_gate_closes_with_1(tiny_model, worse, rows, text, tmp_path, capsys):
    argv = [worse, tiny_model, "--data", rows, "--limit", "3", "--max_new_tokens", "2", "--gate", "--general", text,
            "--output_dir", tmp_path / "out", "--json"]
    assert run(*argv) == 1
    out, err = capsys.readouterr()
    gate = json.loads(out)["gate"]
    assert not gate["passes"] and gate["checks"][0]["drop"] > 0.1 and gate["checks"][0]["data"] == str(text)
    assert f"gate: CLOSED: {tiny_model} on {text}: perplexity" in err
    assert run(*argv, "--max_forgetting", "1e9") == 0
    general = json.loads(capsys.readouterr().out)["general"]
    assert general[0]["data"] == str(text) and general[0]["models"][0]["exact_match"]["reason"]


def test_the_battery_is_chosen_and_said(tiny_model, rows, tmp_path, monkeypatch, capsys):
    from posttrain.app.eval import _battery

    assert [spec for spec, _ in _battery("builtin")] == ["builtin:facts"]
    assert [spec for spec, _ in _battery(str(tiny_model))] == ["builtin:general"]
    trained = tmp_path / "run"
    shutil.copytree(tiny_model, trained / "model")
    (trained / "config.yaml").write_text(f"data: [{rows}@0.5, {rows}]\n")
    assert [spec for spec, _ in _battery(str(trained))] == ["builtin:general", f"{rows}[#200]"]
    (trained / "config.yaml").write_text(f"data: [{rows}]\neval_data: [held.json]\n")
    assert [spec for spec, _ in _battery(str(trained))] == ["builtin:general", "held.json[#200]"]


@pytest.mark.parametrize(("argv", "said"), [
    (["builtin"], "there are no rows to measure on"), ([], "`posttrain eval` needs MODEL"),
    (["builtin", "--data", "builtin:prose@0.2"], "a share of every update means nothing"),
    (["builtin", "--data", "builtin", "--gate"], "the gate compares with a baseline"),
    (["builtin", "--data", "builtin", "--max_forgetting", "0.5"], "max_forgetting changes nothing without the gate"),
    (["builtin", "--data", "builtin", "--top_p", "0.5"], "top_p changes nothing at temperature 0"),
    (["http://127.0.0.1:9/v1", "builtin", "--data", "builtin:facts", "--gate"], "needs log-probs of its baseline")])
def test_what_is_refused(argv, said, capsys):
    assert main(["eval", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("name", "said"), [
    ("./runs/sft-9", "there is no such model folder"), ("http://127.0.0.1:9/v1", "the endpoint gave no answer"),
    ("http://127.0.0.1:9/v1#named", "the endpoint gave no answer")])
def test_a_model_that_is_not_there_is_told_before_any_other_is_measured(name, said, rows, tmp_path, monkeypatch,
                                                                        capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("posttrain.app.assistant.load", lambda *_: pytest.fail("a model was loaded"))
    for asked in (["--data", rows], ["--benchmarks", "gsm8k"], ["--code", rows, "--allow_code_execution"]):
        assert run("builtin", name, *asked) == 2
        err = capsys.readouterr().err
        assert said in err and name.partition("#")[0] in err
    assert not (tmp_path / "runs").exists()


def test_an_interrupted_evaluation_leaves_no_empty_folder(rows, tmp_path, monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("posttrain.app.assistant.load", stopped)
    assert run("builtin", "--data", rows) == 130 and "interrupted" in capsys.readouterr().err
    assert run("builtin", "--data", rows, "--output_dir", "mine") == 130
    assert not any((tmp_path / "runs").iterdir()) and not (tmp_path / "mine").exists()


def test_an_output_folder_in_use(rows, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["eval", "builtin", "--data", str(rows), "--output_dir", str(tmp_path)]) == 2
    assert "files that no evaluation wrote" in capsys.readouterr().err
