"""Every recipe is a valid settings file; the embedded twins run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from posttrain.app.arguments import parse
from posttrain.app.cli import main
from posttrain.core.config import read_config

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name != "shapes")
SHAPES = sorted((ROOT / "recipes" / "shapes").glob("*.yaml"))
TWINS = [p for p in RECIPES if p.stem.endswith("_embedded")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = parse([read_config(path).get("objective", "sft"), str(path)]).settings
    assert settings.data
    if settings.architecture:
        assert Path(settings.architecture).is_file()
    assert path.read_text("utf-8").startswith("# ")


@pytest.mark.parametrize("path", SHAPES, ids=lambda p: p.stem)
def test_a_shape_is_a_transformers_config(path):
    from transformers import AutoConfig

    values = read_config(path)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    assert config.vocab_size == values["vocab_size"]


@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_a_twin_has_the_numbers_of_its_tutorial(path):
    twin, full = read_config(path), read_config(path.with_name(path.name.replace("_embedded", "")))
    for key in ("learning_rate", "num_train_epochs", "batch_size", "lr_scheduler_type", "warmup_ratio", "method"):
        assert twin[key] == full[key], key


@pytest.mark.slow
@pytest.mark.parametrize("path", TWINS, ids=lambda p: p.stem)
def test_a_twin_runs(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    run = tmp_path / "run"
    assert main(["sft", str(path), "--output_dir", str(run)]) == 0
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [m["loss"] for m in metrics if "loss" in m]
    tenth = max(1, len(losses) // 10)
    assert sum(losses[-tenth:]) < sum(losses[:tenth])
    ledger = json.loads((run / "ledger.json").read_text())
    assert ledger["rows"]["read"] == ledger["rows"]["trained"] + sum(ledger["rows"]["dropped"].values())
