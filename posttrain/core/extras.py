"""Packages that only some runs need. No torch here."""

from __future__ import annotations

import importlib.util

from .errors import UserError


def need_extra(module: str, extra: str, *, where: str, found: str, instead: str = "") -> None:
    """Stop with the command that brings a package where it is missing; it is looked for, not imported."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{module} is not installed", where=where, found=found,
                        fix=f"pip install 'posttrain[{extra}]'" + (f", or {instead}" if instead else ""))
