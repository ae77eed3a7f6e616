"""One setting: what `Settings` is made of."""

from __future__ import annotations

from typing import Any

from pydantic import Field


def key(group: str, default: Any, doc: str, only: tuple[str, ...] = (), **bounds: Any) -> Any:
    """One setting: its group in `--help`, default, one-line meaning, the objectives that alone use it (none named:
    every one), and pydantic bounds (ge, gt, le, lt)."""
    return Field(default, description=doc, json_schema_extra={"group": group, "only": list(only)}, **bounds)
