"""Seconds from the command to the first update, and its memory, on Alpaca and on a million rows made from it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import psutil

from .measure import MIB, alone, machine, median, table
from .shapes import BUILD, SHARED, alpaca

LIMITS = {("alpaca", "full"): 8.0, ("alpaca", "lora"): 10.0, ("million", "full"): 20.0, ("million", "lora"): 20.0}


def million_rows() -> Path:
    """1,000,000 Alpaca rows as JSONL: the file repeated, each copy's instructions numbered so that rows differ."""
    path = BUILD / "million.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = alpaca()
        partial = path.with_suffix(".part")
        with partial.open("w", encoding="utf-8") as f:
            for n in range(1_000_000):
                row = rows[n % len(rows)]
                f.write(json.dumps(row | {"instruction": f"{n}. {row['instruction']}"}, ensure_ascii=False) + "\n")
        partial.rename(path)
    return path


def tree_bytes(process: psutil.Process) -> int:
    """Memory that a process and its children hold alone (USS): what ending them would free, libraries left out."""
    total = 0
    for p in (process, *process.children(recursive=True)):
        try:
            total += p.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def measure(data: Path, method: str, model: str, patience: float = 300.0) -> dict:
    """Start `posttrain sft`, wait for the first line of metrics.jsonl, then stop it."""
    folder = Path(tempfile.mkdtemp()) / "run"
    command = [str(Path(sys.executable).parent / "posttrain"), "sft", "--model", model, "--data", str(data), "--method",
               method, "--output_dir", str(folder), "--max_steps", "40"]
    with tempfile.TemporaryFile("w+") as log:
        began = time.time()
        running = psutil.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        metrics, peak = folder / "metrics.jsonl", 0
        try:
            while not (metrics.exists() and metrics.stat().st_size):
                peak = max(peak, tree_bytes(running)) if running.poll() is None else peak
                if running.poll() is not None or time.time() - began > patience:
                    log.seek(0)
                    raise SystemExit(f"no update ({' '.join(command)}):\n{log.read()[-2000:]}")
                time.sleep(0.05)
            seconds = time.time() - began
        finally:
            if running.poll() is None:
                running.send_signal(signal.SIGKILL)
            running.wait()
    return {"seconds": seconds, "memory_mib": peak / MIB}


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.start", description=__doc__)
    p.add_argument("--model", default="builtin")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--only", choices=["alpaca", "million"])
    a = p.parse_args(argv)
    with alone():
        files = {"alpaca": SHARED / "stanford_alpaca" / "alpaca_data.json.gz"}
        if a.only != "alpaca":
            files["million"] = million_rows()
        cases = [(n, m) for n in files if a.only in (None, n) for m in ("full", "lora")]
        where, runs = machine(), {c: [] for c in cases}
        for _ in range(a.repeats):
            for case in cases:
                runs[case].append(measure(files[case[0]], case[1], a.model))
                print(f"  {case[0]:<8} {case[1]:<5} {runs[case][-1]['seconds']:6.1f} s", flush=True)
    rows, late = [], []
    for case, reports in runs.items():
        seconds = median([r["seconds"] for r in reports])
        rows.append([f"{case[0]} rows, {case[1]}", f"{seconds:.1f}", f"{LIMITS[case]:.0f}",
                     f"{median([r['memory_mib'] for r in reports]):,.0f}"])
        late += [case] if seconds > LIMITS[case] else []
    text = (f"From the command to the end of the first update, imports included, {a.model} model, median of "
            f"{a.repeats}, {where['cores']} cores of {where['cpu']}, {where['date']}.\n\n"
            + table(["", "seconds", "bound", "memory MiB, both processes"], rows))
    (BUILD / "start.json").write_text(json.dumps(
        {"machine": where, "runs": {" ".join(c): r for c, r in runs.items()}}, indent=1))
    (BUILD / "start.md").write_text(text + "\n")
    print(text)
    return 1 if late else 0


if __name__ == "__main__":
    sys.exit(main())
