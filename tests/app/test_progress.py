"""What a run shows while it goes on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from posttrain.app.progress import LINES, NOTES, Progress, duration


def metrics(step: int) -> dict:
    return {"step": step, "epoch": step / 10, "loss": 1 / step, "learning_rate": 1e-4, "grad_norm": 1.0,
            "tokens": 12_000, "trained_tokens": 100, "tokens_per_second": 6000.0, "seconds": 2.0}


def shown(total: int, start: int = 0, notes: int = 0, **kwargs) -> list[str]:
    out = io.StringIO()
    with Progress(total, Console(file=out, width=100), start=start, **kwargs) as progress:
        for step in range(start + 1, total + 1):
            progress.update(metrics(step))
        for n in range(notes):
            progress.note(f"validation {n}")
    return out.getvalue().splitlines()


@pytest.mark.parametrize("total", [1, 7, 30, 31, 999, 100_000])
def test_tens_of_lines_for_any_length(total):
    lines = shown(total)
    assert len(lines) <= LINES + 2
    assert lines[0].startswith(f"update 1/{total} ") and lines[-1].startswith(f"update {total}/{total} ")


def test_a_line_says_what_matters():
    line = shown(10)[4]
    for part in ("update 5/10", "epoch 0.50", "loss 0.2000", "6,000 tok/s", "RAM ", "0:10 left"):
        assert part in line, line


def test_logging_steps_thins_the_lines():
    assert len(shown(20, every=1)) == 20
    assert [line.split()[1] for line in shown(20, every=10)] == ["1/20", "10/20", "20/20"]


def test_a_resumed_run_goes_on_counting():
    assert [line.split()[1] for line in shown(6, start=4)] == ["5/6", "6/6"]


def test_notes_are_bounded():
    lines = shown(1, notes=500)
    assert len(lines) == 1 + NOTES + 1 and "metrics.jsonl" in lines[-1]


def test_a_terminal_gets_a_bar():
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True)
    with Progress(3, console) as progress:
        for step in (1, 2, 3):
            progress.update(metrics(step))
    text = out.getvalue()
    assert "3/3" in text and "loss 0.3333" in text and "tok/s" in text and "━" in text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (123, "2:03"), (3723, "1:02:03")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_an_update_whose_rows_were_all_dropped():
    out = io.StringIO()
    with Progress(1, Console(file=out, width=100)) as progress:
        progress.update({**metrics(1), "loss": None, "grad_norm": None, "tokens": 0})
    assert "no row to train" in out.getvalue()
