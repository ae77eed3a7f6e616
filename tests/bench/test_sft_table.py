"""The benchmarks' own arithmetic: medians, loss gaps, ratios; and that two cannot run at once."""

import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sft(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import sft
    return sft


def report(speed: float, peak: float, losses: list[float], worker: float = 0.0) -> dict:
    return {"tokens_per_second": speed, "peak_mib": peak, "worker_mib": worker, "first_update_s": 1.0, "losses": losses}


def test_ratios_are_against_the_fastest_and_the_leanest_peer(sft):
    runs = {"posttrain": [report(s, 300, [2.0, 1.0], 20) for s in (50, 600, 610)],
            "trainer": [report(200, 800, [2.0, 1.001])], "trl-packed": [report(300, 1000, [2.02, 1.0])],
            "trainer, bf16 weights": [report(9_999, 1, [2.0, 1.5])]}
    summary = sft.summarize(runs)
    assert summary["posttrain"]["tokens_per_second"] == 600 and summary["posttrain"]["loss_gap"] == 0
    assert summary["trainer"]["loss_gap"] == pytest.approx(0.001)
    assert summary["trl-packed"]["loss_gap"] == pytest.approx(0.01)
    text = sft.render(sft.SHAPES["7m"], 2, summary, {"cores": 2, "cpu": "a CPU", "date": "today"})
    assert "2.00× the tokens/s of the fastest peer (trl-packed); 0.40× the memory of the leanest (trainer)" in text


def test_every_contestant_has_whole_micro_batches(sft):
    for shape in sft.SHAPES.values():
        for extra in sft.contestants(shape, 4096).values():
            assert shape.rows % extra.get("micro", 1) == 0


def test_two_benchmarks_never_run_at_once(sft, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    from bench.measure import alone
    entered = threading.Event()

    def second() -> None:
        with alone():
            entered.set()

    with alone():
        other = threading.Thread(target=second)
        other.start()
        assert not entered.wait(0.2)
    assert entered.wait(5)
    other.join()
