"""What must be quick is quick: help, version and a mistyped key come without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROBE = """
import sys, time
began = time.perf_counter()
from posttrain.app.cli import main
code = main(sys.argv[1:])
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "transformers", "peft", "datasets"})
print("heavy:", heavy, "code:", code, "seconds:", round(time.perf_counter() - began, 2), file=sys.stderr)
"""
BY_VERB = [[*verb.split(), "--help"] for verb in ("sft", "data show", "data check", "data table", "chat", "compare",
                                                  "demo", "env")]


def probe(*argv: str, width: str = "100") -> subprocess.CompletedProcess:
    env = {**os.environ, "COLUMNS": width}
    return subprocess.run([sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, env=env, timeout=60)


@pytest.mark.parametrize("argv", [[], ["--help"], ["--version"], *BY_VERB], ids=" ".join)
def test_help_and_version_import_no_torch(argv):
    done = probe(*argv)
    assert "heavy: [] code: 0" in done.stderr, done.stderr
    assert done.stdout


@pytest.mark.parametrize("argv", [["sft", "--lerning_rate", "1"], ["sft", "--seed", "x"], ["chta"], ["data", "sho"],
                                  ["sft", "absent.yaml"], ["chat"]], ids=" ".join)
def test_a_mistake_is_found_before_torch(argv):
    done = probe(*argv)
    assert "heavy: [] code: 2" in done.stderr and "error: " in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not done.stdout


def test_help_starts_quickly():
    seconds = min(float(probe("--help").stderr.split("seconds:")[1]) for _ in range(3))
    assert seconds < 1.0


@pytest.mark.parametrize("width", ["48", "80", "100"])
def test_help_stays_in_the_terminal(width):
    shown = probe("sft", "--help", width=width).stdout.splitlines()
    texts = [line for line in shown if not line.startswith(("  --", "  posttrain"))]
    assert max(map(len, texts)) <= int(width)


def test_importing_the_package_imports_no_torch():
    code = "import sys, posttrain; print(posttrain.__version__, 'torch' in sys.modules, sorted(dir(posttrain)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split()[1] == "False", done.stderr
    assert all(name in done.stdout for name in ("sft", "load", "builtin_model_path"))
