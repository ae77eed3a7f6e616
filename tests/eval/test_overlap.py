"""BLEU and ROUGE equal the command lines of their libraries, on 500 real pairs, English and Chinese."""

from __future__ import annotations

import csv
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from posttrain.core.errors import UserError
from posttrain.eval import overlap
from posttrain.eval.figures import ROUGES
from posttrain.eval.intervals import interval
from posttrain.eval.overlap import Characters, Overlap

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")


@pytest.fixture(scope="module")
def english(shared_data):
    """500 answers and, as what a model might have said, the answers with every fifth word left out."""
    with gzip.open(shared_data / "stanford_alpaca" / "alpaca_data.json.gz", "rt", encoding="utf-8") as file:
        rows = [r["output"].replace("\n", " ").strip() for r in json.load(file)[:1200]]
    wanted = [r for r in rows if len(r.split()) > 4][:500]
    assert len(wanted) == 500
    return [" ".join(w for i, w in enumerate(r.split()) if i % 5) for r in wanted], wanted


@pytest.fixture(scope="module")
def chinese(shared_data):
    """500 translations, and for each the translation that stands after it."""
    lines = (shared_data / "tatoeba_en_zh" / "cmn.txt").read_text("utf-8").splitlines()[9000:9501]
    wanted = [line.split("\t")[1] for line in lines]
    return wanted[1:], wanted[:-1]


def command_line(tmp_path, answers, wanted, tokenizer):
    (tmp_path / "a.txt").write_text("\n".join(answers) + "\n", "utf-8")
    (tmp_path / "r.txt").write_text("\n".join(wanted) + "\n", "utf-8")
    said = subprocess.run([sys.executable, "-m", "sacrebleu", str(tmp_path / "r.txt"), "-i", str(tmp_path / "a.txt"),
                           "-tok", tokenizer, "-b", "-w", "6"], capture_output=True, text=True, timeout=120)
    return float(said.stdout)


def rouge_command_line(tmp_path, answers, wanted):
    for name, texts in (("t.txt", wanted), ("p.txt", answers)):
        (tmp_path / name).write_text("\n".join(texts) + "\n", "utf-8")
    subprocess.run([sys.executable, "-m", "rouge_score.rouge", f"--target_filepattern={tmp_path / 't.txt'}",
                    f"--prediction_filepattern={tmp_path / 'p.txt'}", f"--output_filename={tmp_path / 'o.csv'}",
                    "--noaggregate"], capture_output=True, timeout=120, check=True)
    rows = list(csv.DictReader((tmp_path / "o.csv").open()))
    return {name: np.mean([float(r[f"{name}-F"]) for r in rows]) for name in ROUGES}, len(rows)


@pytest.mark.parametrize(("pairs", "tokenizer"), [("english", "13a"), ("chinese", "zh")])
def test_bleu_is_that_of_the_command_line(pairs, tokenizer, request, tmp_path):
    answers, wanted = request.getfixturevalue(pairs)
    chosen = Overlap.of(wanted)
    assert chosen.facts()["bleu"]["tokenizer"] == tokenizer
    made = chosen.bleu(answers, wanted)
    assert made.value == pytest.approx(command_line(tmp_path, answers, wanted, tokenizer), abs=1e-6)
    assert made.value > 1
    found = interval(made)
    assert found.low < made.value < found.high


def test_rouge_is_that_of_the_command_line(english, tmp_path):
    answers, wanted = english
    theirs, count = rouge_command_line(tmp_path, answers, wanted)
    ours = Overlap.of(wanted).rouge(answers, wanted)
    assert count == 500 and {n: ours[n].value for n in ROUGES} == pytest.approx(theirs, abs=1e-6)
    mixed = Overlap("zh").rouge(answers, wanted)  # characters change nothing where there are none
    assert {n: mixed[n].value for n in ROUGES} == pytest.approx(theirs, abs=1e-6)


def test_rouge_of_chinese_is_that_of_the_command_line_over_spelled_characters(chinese, tmp_path):
    answers, wanted = chinese

    def spelled(text):
        return " ".join(t if t.isascii() else f"u{ord(t):x}" for t in Characters().tokenize(text)) or "."

    spell = [[spelled(text) for text in texts] for texts in chinese]
    theirs, count = rouge_command_line(tmp_path, *spell)
    ours = Overlap.of(wanted).rouge(answers, wanted)
    assert count == 500 and {n: ours[n].value for n in ROUGES} == pytest.approx(theirs, abs=1e-6)
    assert ours["rouge1"].value > 0.05


def test_a_missing_library_says_what_brings_it(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(overlap, "import_module", absent)
    with pytest.raises(UserError, match="rouge-score is not installed") as caught:
        overlap.need("rouge_score.rouge_scorer")
    assert caught.value.fix == 'pip install "posttrain[eval]"'
