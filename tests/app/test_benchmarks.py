"""Benchmarks through the harness: its figures on the same folder, and what does not go together."""

import csv
import json
from types import SimpleNamespace

import pytest

import posttrain
from posttrain.app import benchmarks
from posttrain.app.arguments import parse
from posttrain.core.config import Settings
from posttrain.core.errors import UserError
from posttrain.eval.benchmarks import figures, find_tasks, run_benchmarks

TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
output_type: {kind}
doc_to_text: "{text}"
doc_to_target: {target}
metric_list:
  - metric: {metric}
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.5
"""
CHOICES = '{{question}}\\nA. {{choices[0]}}\\nB. {{choices[1]}}\\nC. {{choices[2]}}\\nD. {{choices[3]}}\\nAnswer:'
GENERATE = "generation_kwargs:\n  until: ['Question:']\n  do_sample: false\n  max_gen_toks: 16\n"


def words(*argv):
    return parse(["eval", "builtin", *argv])


@pytest.fixture
def slices(tmp_path, shared_data):
    """Two task files over real rows: 40 of MMLU by likelihood, 6 of GSM8K by generation."""
    path = sorted((shared_data / "mmlu" / "test").glob("*.csv"))[0]
    with path.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:40]
    mmlu = [{"question": r["question"], "choices": [r[f"choice{i}"] for i in range(4)], "answer": int(r["answer"])}
            for r in rows]
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text("utf-8").splitlines()[:6]
    for name, made in (("mmlu", mmlu), ("gsm", [json.loads(line) for line in lines])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in made))
    (tmp_path / "m.yaml").write_text(TASK.format(
        name="mmlu_slice", rows=tmp_path / "mmlu.jsonl", kind="multiple_choice", text=CHOICES, target="answer",
        metric="acc") + 'doc_to_choice: ["A", "B", "C", "D"]\n')
    (tmp_path / "g.yaml").write_text(TASK.format(
        name="gsm_slice", rows=tmp_path / "gsm.jsonl", kind="generate_until", text="Question: {{question}}\\nAnswer:",
        target="\"{{answer.split('####')[-1].strip()}}\"", metric="exact_match") + GENERATE)
    return [str(tmp_path / "m.yaml"), str(tmp_path / "g.yaml")]


@pytest.mark.parametrize("chat", [False, True])
def test_the_figures_are_the_harness_own(slices, chat):
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'posttrain[eval]'")
    names, manager = find_tasks(slices)
    assert names == ["mmlu_slice", "gsm_slice"]
    assistant = posttrain.load("builtin", Settings(dtype="float32"))
    ours = figures(run_benchmarks(assistant, names, manager, limit=None, num_fewshot=None, chat=chat, seed=42))
    path, tokenizer = posttrain.builtin_model_path(), ""
    if chat:  # the embedded base has no template of its own: the harness is given the folder that has it
        folder = manager.include_path[0] + "/spoken"
        assistant.renderer.spec.save(folder)
        tokenizer = f",tokenizer={folder}"
    theirs = figures(lm_eval.simple_evaluate(
        model="hf", model_args=f"pretrained={path},dtype=float32{tokenizer}", device="cpu", batch_size=8, tasks=names,
        task_manager=manager, apply_chat_template=chat, bootstrap_iters=1000, random_seed=42, numpy_random_seed=42,
        torch_random_seed=42, fewshot_random_seed=42, log_samples=False))
    assert ours == theirs
    assert ours["mmlu_slice"]["n"] == 40 and ours["mmlu_slice"]["version"] == 1.5
    assert 0 < ours["mmlu_slice"]["acc,none"] < 1


def test_the_verb_writes_and_tells(slices, tmp_path, capsys):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'posttrain[eval]'")
    from posttrain.app.eval import main

    out = tmp_path / "out"
    assert main(words("--benchmarks", slices[0], "--limit", "8", "--output_dir", str(out), "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads((out / "eval.json").read_text()) and told["harness"].startswith("lm-eval 0.")
    assert told["models"][0]["benchmarks"]["mmlu_slice"]["n"] == 8 and not told["models"][0]["chat_template"]
    assert "mmlu_slice" in json.loads((out / "harness-0.json").read_text())["configs"]


def test_a_missing_harness_says_what_brings_it(monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else found(name))
    with pytest.raises(UserError, match="lm_eval is not installed") as caught:
        find_tasks(["gsm8k"])
    assert "pip install 'posttrain[eval]'" in caught.value.fix


@pytest.mark.parametrize(("name", "message", "hint"), [
    ("gsm8", "the harness has no such benchmark", "gsm8k"),
    ("humaneval", "this benchmark runs the programs that the model writes", "humaneval --allow_code_execution"),
    ("humaneval_plus", "this benchmark runs the programs that the model writes", "--code FILE --allow_code_execution"),
    ("none.yaml", "the task file cannot be read", "existing")])
def test_wrong_names(name, message, hint):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'posttrain[eval]'")
    with pytest.raises(UserError, match=message) as caught:
        find_tasks([name])
    assert hint in caught.value.fix


def test_a_file_without_a_task(tmp_path):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'posttrain[eval]'")
    (tmp_path / "x.yaml").write_text("dataset_path: json\n")
    with pytest.raises(UserError, match="the file defines no task"):
        find_tasks([str(tmp_path / "x.yaml")])


@pytest.mark.parametrize("argv", [("--data", "a.jsonl"), ("--gate",), ("--temperature", "0.5"), ("--reward", "exact"),
                                  ("--allow_code_execution",), ("--samples", "2")])
def test_what_would_change_nothing_is_an_error(argv):
    with pytest.raises(UserError, match=f"{argv[0][2:]}: the harness's tasks bring their own rows and settings"):
        benchmarks.check(words("--benchmarks", "gsm8k", *argv))


def test_shots_without_benchmarks():
    from posttrain.app.eval import main

    with pytest.raises(UserError, match="num_fewshot changes nothing without benchmarks"):
        main(words("--num_fewshot", "2"))


def test_the_table():
    scores = {"t": {"acc,none": 0.5, "acc_stderr,none": 0.1, "em,strict": 0.25, "em_stderr,strict": "N/A", "n": 4,
                    "version": 1, "shots": 0}}
    made = benchmarks.table([{"model": "m", "benchmarks": scores}, {"model": "k", "benchmarks": scores}])
    assert [str(c) for c in made.columns[0].cells] == ["t acc, n = 4", "t em (strict), n = 4"]
    assert [str(c) for c in made.columns[2].cells] == ["0.5000 ± 0.1000", "0.2500"]


def test_an_endpoint_has_no_benchmarks():
    with pytest.raises(UserError, match="benchmarks need log-probs of the prompt"):
        benchmarks._open("http://localhost:1/v1#m", SimpleNamespace())


@pytest.mark.parametrize(("name", "rows"), [("humaneval", "openai/openai_humaneval:test"),
                                            ("mbpp", "google-research-datasets/mbpp:full:test")])
def test_programs_go_to_the_sandbox(name, rows):
    from posttrain.app import code

    command = words("--benchmarks", name, "--allow_code_execution")
    assert benchmarks.to_sandbox(command) and command.options["code"] == rows and code.check(command) == [1]
    refused = words("--benchmarks", name)
    assert benchmarks.to_sandbox(refused)
    with pytest.raises(UserError, match="these problems run programs that the model wrote"):
        code.check(refused)
    assert not benchmarks.to_sandbox(words("--benchmarks", f"{name},gsm8k"))


@pytest.mark.parametrize("argv", [("--code", "p.jsonl"), ("--num_fewshot", "2")])
def test_a_benchmark_of_programs_brings_its_own_problems(argv):
    with pytest.raises(UserError, match="humaneval brings its own problems"):
        benchmarks.to_sandbox(words("--benchmarks", "humaneval", *argv))
