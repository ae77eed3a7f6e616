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


@pytest.fixture
def fn(tmp_path):
    path = tmp_path / "fn.py"
    path.write_text("def score(prompts, answers, rows):\n"
                    "    return [a.count('e') - 0.1 * len(a) for a in answers]\n\n\n"
                    "def nan(prompts, answers, rows):\n    return [float('nan') for _ in answers]\n\n\n"
                    "def same(prompts, answers, rows):\n    return [1 for _ in answers]\n\n\n"
                    "def unsure(prompts, answers, rows):\n"
                    "    return [None if 'e' in a else len(a) for a in answers]\n\n\n"
                    "unsure.abstains = True\n\n\n"
                    "def mute(prompts, answers, rows):\n    return [None for _ in answers]\n\n\n"
                    "mute.abstains = True\n\n\n"
                    "def raises(prompts, answers, rows):\n    return [row['gold'] for row in rows]\n")
    return path


@pytest.fixture
def sampled_run(tiny_model, rows, tmp_path, fn):
    """A function that makes a short run of an objective on its own answers."""
    def run(verb="ppo", name="run", **values):
        asked = {"model": tiny_model, "data": f"{rows}[#24]", "max_steps": 12, "batch_size": 8, "dtype": "float32",
                 "minibatches": 2, "max_new_tokens": 8, "max_length": 64, "learning_rate": 3e-3, "save_steps": 4,
                 "save_total_limit": 9, "reward": f"{fn}:score", "output_dir": tmp_path / name}
        if verb == "grpo":
            asked |= {"num_generations": 2, "max_steps": 6}
        if verb == "online_dpo":
            asked |= {"max_steps": 6}
        return getattr(posttrain, verb)(**(asked | values))
    return run
