"""`report_to`: the same metrics to tensorboard, wandb or trackio, through their own libraries."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from posttrain.core.config import Settings
from posttrain.core.errors import UserError


class Reporter(Protocol):
    """Where lines of metrics go besides metrics.jsonl."""

    def log(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def need(name: str) -> Any:
    """The library behind a `report_to` name, or the command that installs it."""
    modules = {"tensorboard": "torch.utils.tensorboard"}
    try:
        return import_module(modules.get(name, name))
    except ImportError:
        raise UserError(f"{name} is not installed", where="report_to", found=name,
                        fix=f"pip install 'posttrain[{name}]'") from None


def open_reporters(settings: Settings, folder: Path) -> list[Reporter]:
    """One reporter per name in `report_to`, each logging every `logging_steps` updates."""
    return [_Every(_opened(name, settings, folder), settings.logging_steps) for name in settings.report_to]


def _opened(name: str, settings: Settings, folder: Path) -> Reporter:
    """A library's own failures to start (no login, no network, no room) are no fault of the run's."""
    library = need(name)
    own = (library.Error,) if hasattr(library, "Error") else ()  # wandb's
    try:
        return _OPEN[name](library, settings, folder)
    except (OSError, ValueError, RuntimeError, *own) as e:
        said = str(e).strip() or type(e).__name__
        raise UserError(f"{name} could not be started", where="report_to", found=said, fix=_STARTS[name]) from e


class _Every:
    """Hands on every n-th update, and any that was validated."""

    def __init__(self, inner: Reporter, every: int):
        self.inner, self.every = inner, every

    def log(self, line: dict[str, Any]) -> None:
        if line["step"] % self.every == 0 or "eval_loss" in line:
            self.inner.log({k: v for k, v in line.items() if v is not None})

    def close(self) -> None:
        self.inner.close()


class _Tensorboard:
    def __init__(self, library, settings: Settings, folder: Path):
        self.writer = library.SummaryWriter(str(folder / "tensorboard"))

    def log(self, line: dict[str, Any]) -> None:
        for key, value in line.items():
            if key != "step":
                self.writer.add_scalar(f"eval/{key[5:]}" if key.startswith("eval_") else f"train/{key}", value,
                                       line["step"])

    def close(self) -> None:
        self.writer.close()


class _Tracker:
    """wandb, and trackio, which has the same calls."""

    def __init__(self, library, settings: Settings, folder: Path):
        self.module = library
        library.init(project="posttrain", name=folder.name, config=settings.model_dump(by_alias=True))

    def log(self, line: dict[str, Any]) -> None:
        self.module.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def close(self) -> None:
        self.module.finish()


_STARTS = {"tensorboard": "make the run folder writable, or drop tensorboard from report_to",
           "wandb": "log in with `wandb login`, set WANDB_MODE=offline, or drop wandb from report_to",
           "trackio": "drop trackio from report_to; metrics.jsonl in the run folder has the same numbers"}
_OPEN = {"tensorboard": _Tensorboard, "wandb": _Tracker, "trackio": _Tracker}
