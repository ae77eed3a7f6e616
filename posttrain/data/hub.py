"""Data sets of the Hugging Face hub, through `datasets`. The network is used only here, and only for a hub id."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from ..core.errors import UserError
from .tables import without_nulls

# owner/name, with up to two parts after colons (:split, :config:split); a bare name only with them, so that a mistyped
# file is never sent out
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*(:[\w.-]+){0,2}|(:[\w.-]+){1,2})")


def looks_like_hub_id(path: str) -> bool:
    return _HUB_ID.fullmatch(path) is not None


class HubRows:
    """Rows of one split of a hub data set, mapped from its Arrow files; `line` is the 1-based row."""

    def __init__(self, spec: str, hint: str = ""):
        self.path = spec
        name, *rest = spec.split(":")
        split, config = (rest[-1] if rest else None), (rest[0] if len(rest) == 2 else None)
        self.table = _load(spec, name, config, split, hint)
        if not len(self):
            raise UserError("the hub split holds no rows", where=spec, expected="at least one row")

    def __len__(self) -> int:
        return self.table.num_rows

    def line(self, i: int) -> int:
        return i + 1

    def read(self, i: int) -> dict[str, Any]:
        """Row i as a dict, without the nulls that Arrow puts where a key is missing."""
        return without_nulls(self.table[i])

    def sha256(self) -> str:
        """SHA-256 of the fingerprint that `datasets` keeps of the split's content and history."""
        return hashlib.sha256(self.table._fingerprint.encode()).hexdigest()


def _load(spec: str, name: str, config: str | None, split: str | None, hint: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise UserError("hub data sets need the extra package `datasets`", where=spec,
                        fix="pip install 'posttrain[data]'; or name a file that exists") from None
    # what datasets, huggingface_hub and their transport raise; HTTP and connection errors are OSErrors there
    try:
        loaded = datasets.load_dataset(name, config, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as e:
        raise UserError("no such file, and the hub gave no data set of this name", where=spec,
                        found=f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}",
                        expected="an existing path, or owner/name[:config][:split] of the hub",
                        fix=hint or "check the name and the connection") from None
    if split is not None:
        return loaded
    if "train" in loaded:
        return loaded["train"]
    if len(loaded) == 1:
        return next(iter(loaded.values()))
    raise UserError("the hub data set has several splits and none is called train", where=spec,
                    found=", ".join(loaded), fix=f"name one: {name}:{next(iter(loaded))}")
