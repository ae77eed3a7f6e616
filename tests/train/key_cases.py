"""Cases of test_every_key.py that are no few lines."""

from __future__ import annotations

from posttrain.app.cli import main


def _as_torchrun(monkeypatch, asked: list) -> None:
    """In torchrun's place: note what it is handed, and let the run go on here as the only process."""
    def run(args):
        asked.append((args.nproc_per_node, args.max_restarts, args.module, args.training_script))
        with monkeypatch.context() as env:
            env.setenv("RANK", "0")
            env.setenv("WORLD_SIZE", "1")
            assert main([*args.training_script_args]) == 0

    monkeypatch.setattr("torch.distributed.run.run", run)


def processes(bench, monkeypatch):
    asked: list = []
    _as_torchrun(monkeypatch, asked)
    assert not bench.differ({}, {"processes": 2})
    assert asked == [("2", 0, True, "posttrain")]


def max_restarts(bench, monkeypatch):
    assert "max_restarts restarts the processes of a run: set processes" in bench.fails(max_restarts=1)
    asked: list = []
    _as_torchrun(monkeypatch, asked)
    bench.run(processes=3, max_restarts=2)
    assert asked == [("3", 2, True, "posttrain")]
