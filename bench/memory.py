"""Memory planned and measured: every method, checkpointing on and off, two pack sizes, each in a fresh process."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import alone, as_posttrain, machine, status_bytes, table
from .shapes import BUILD, ROOT, SHAPES, Shape, alpaca, model_folder

MB = 10**6
ROW = 256  # tokens of a row: what attention on CPU keeps most for, so that packs are what a plan reckons with
PACKS = {"7m": (1024, 4096), "0.6b": (512, 1024)}
METHODS = ("full", "lora", "qlora")


def rows_file(pack: int) -> Path:
    """Four rows of Alpaca text, each enough for more than two packs: full ones, every token trained."""
    path = BUILD / f"text-{pack}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "\n".join(r["instruction"] + " " + r["output"] for r in alpaca(8000))
    size = 12 * pack
    path.write_text("".join(json.dumps({"text": text[i * size:(i + 1) * size]}) + "\n" for i in range(4)))
    return path


def child(arguments: dict) -> dict:
    """Two updates of several packs each -> bytes held at most above what the process held after its imports."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import posttrain
    from posttrain.model import probe  # noqa: F401
    from posttrain.train import session  # noqa: F401

    held = status_bytes("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        posttrain.sft(**arguments, output_dir=f"{folder}/run")
        with open(f"{folder}/run/metrics.jsonl") as file:
            tokens = min(json.loads(line)["tokens"] for line in file)
    assert tokens >= 2 * arguments["pack_tokens"], f"no two packs were filled: {tokens} tokens"
    return {"peak": status_bytes("VmHWM") - held, "tokens": tokens}


def run_one(shape: Shape, method: str, recompute: bool, pack: int) -> dict:
    """One measurement and its plan."""
    keys = {"model": str(model_folder(shape)), "data": str(rows_file(pack)), "method": method, "dtype": "bfloat16",
            "max_steps": 2, "max_length": ROW, "pack_tokens": pack, "batch_size": 1,
            "gradient_checkpointing": recompute, "learning_rate": 1e-4}
    environment = as_posttrain()
    measured = json.loads(subprocess.run([sys.executable, "-m", "bench.memory", "--child", json.dumps(keys)], cwd=ROOT,
                                         env=environment, check=True, stdout=subprocess.PIPE).stdout)
    command = [sys.executable, "-m", "posttrain", "plan", keys.pop("model"), "--json"]
    command += [f"--{k}={str(v).lower() if isinstance(v, bool) else v}" for k, v in keys.items() if k != "data"]
    planned = json.loads(subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE).stdout)
    return {"shape": shape.name, "method": method, "gradient_checkpointing": recompute, "pack_tokens": pack,
            "planned": planned["peak_bytes"], "parts": planned["parts"], **measured}


def off(found: dict) -> bool:
    """Whether plan and measurement differ by more than 10 %, or 64 MB where that is more."""
    return abs(found["planned"] - found["peak"]) > max(0.1 * found["peak"], 64 * MB)


def render(results: list[dict]) -> str:
    rows = []
    for r in results:
        parts = [f"{v / MB:,.0f}" for v in r["parts"].values()]
        rows.append([r["shape"], r["method"] + (", recomputed" if r["gradient_checkpointing"] else ""),
                     f"{r['pack_tokens']:,}", *parts, f"{r['planned'] / MB:,.0f}", f"{r['peak'] / MB:,.0f}",
                     f"{r['planned'] / r['peak'] - 1:+.1%}"])
    header = ["shape", "method", "pack_tokens", *results[0]["parts"], "planned peak", "measured peak", "difference"]
    where = machine()
    return f"MB, bf16, {where['cores']} cores of {where['cpu']}, {where['date']}.\n\n" + table(header, rows)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.memory", description=__doc__)
    p.add_argument("--shape", choices=list(SHAPES), default="7m")
    p.add_argument("--methods", default=",".join(METHODS))
    p.add_argument("--packs", help="comma-separated; default: two sizes that the shape is measured at")
    p.add_argument("--child", help=argparse.SUPPRESS)
    a = p.parse_args(argv)
    if a.child:
        print(json.dumps(child(json.loads(a.child))))
        return 0
    packs = [int(n) for n in a.packs.split(",")] if a.packs else PACKS[a.shape]
    results = []
    with alone():
        for method in a.methods.split(","):
            for recompute in (False, True):
                for pack in packs:
                    found = run_one(SHAPES[a.shape], method, recompute, pack)
                    results.append(found)
                    print(f"  {method:<6} recompute {recompute!s:<5} {pack:>6,} tokens: planned "
                          f"{found['planned'] / MB:8,.0f} MB, measured {found['peak'] / MB:8,.0f} MB"
                          + ("  OUT OF BOUNDS" if off(found) else ""), flush=True)
    (BUILD / f"memory-{a.shape}.json").write_text(json.dumps(results, indent=1))
    (BUILD / f"memory-{a.shape}.md").write_text(render(results) + "\n")
    print("\n" + render(results))
    return 1 if any(map(off, results)) else 0


if __name__ == "__main__":
    sys.exit(main())
