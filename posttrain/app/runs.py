"""Where runs lie: fresh names, what can be resumed, and the settings file a word stands for. Reads names only."""

from __future__ import annotations

from pathlib import Path

from posttrain.model.resolve import list_checkpoints

RUNS = Path("runs")


def fresh_run(prefix: str) -> Path:
    """A new folder runs/PREFIX-N, made at once so that two runs started together never share it."""
    RUNS.mkdir(parents=True, exist_ok=True)
    taken = [p.name.removeprefix(f"{prefix}-") for p in RUNS.glob(f"{prefix}-*")]
    number = max((int(t) for t in taken if t.isdigit()), default=0) + 1
    while True:
        try:
            (RUNS / f"{prefix}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return RUNS / f"{prefix}-{number}"


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first (a folder still being written has another name)."""
    return list_checkpoints(run / "checkpoints")


def resumable() -> list[str]:
    """Runs under runs/ that have a checkpoint, the one last written first."""
    runs = [p for p in RUNS.iterdir() if checkpoints(p)] if RUNS.is_dir() else []
    return [str(p) for p in sorted(runs, key=lambda p: -checkpoints(p)[-1].stat().st_mtime)]


def config_of(word: str) -> Path | None:
    """The settings file that a word on the command line names: itself, or the config.yaml of a run folder."""
    path = Path(word)
    if path.suffix in (".yaml", ".yml"):
        return path
    return path / "config.yaml" if (path / "config.yaml").is_file() else None
