"""A bench on which runs of differing settings lie beside each other."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

import posttrain
from posttrain.core.errors import UserError


class Bench:
    """Runs beside each other; equal settings are trained once."""

    def __init__(self, model, rows, folder):
        self.model, self.rows, self.folder, self.done, self.said = model, rows, folder, {}, {}

    def path(self, name: str, content) -> str:
        """A file of text, or of JSON lines."""
        path = self.folder / name
        path.write_text(content if isinstance(content, str) else "".join(json.dumps(r) + "\n" for r in content))
        return str(path)

    def run(self, **values):
        name = json.dumps(values, sort_keys=True, default=str)
        if name not in self.done:
            out = io.StringIO()
            asked = {"model": self.model, "data": str(self.rows), "max_steps": 4, "batch_size": 8, "dtype": "float32",
                     "method": "full", "learning_rate": 3e-3, "output_dir": self.folder / f"run{len(self.done)}"}
            asked |= values
            verb = getattr(posttrain, asked.pop("verb", "sft"))
            self.done[name] = verb(console=Console(file=out, width=200), **asked)
            self.said[name] = out.getvalue()
        return self.done[name]

    def text(self, **values) -> str:
        self.run(**values)
        return self.said[json.dumps(values, sort_keys=True, default=str)]

    def fails(self, **values) -> str:
        with pytest.raises(UserError) as e:
            self.run(**values)
        return str(e.value)

    def weights(self, **values):
        return load_file(next(self.run(**values).model_path.glob("*.safetensors")))

    def differ(self, one: dict, other: dict) -> bool:
        a, b = self.weights(**one), self.weights(**other)
        return a.keys() != b.keys() or any(a[n].shape != b[n].shape or not torch.equal(a[n], b[n]) for n in a)


@pytest.fixture(scope="module")
def bench(tiny_model, rows, tmp_path_factory):
    return Bench(tiny_model, rows, tmp_path_factory.mktemp("keys"))
