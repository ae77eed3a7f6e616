"""posttrain on the same rows, through its Python API, in the environment of the checkout."""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from pathlib import Path

import peft  # noqa: F401  (the peers import as much before their memory is counted)
import psutil
import torch  # noqa: F401
import transformers  # noqa: F401

import posttrain
from bench.measure import Watch, status_bytes


def note_lines(path: Path, watch: Watch, ended: threading.Event) -> None:
    """Note the time of each new line of metrics.jsonl and the worker's memory: both seen from outside the loop."""
    me = psutil.Process()
    while not ended.is_set():
        watch.worker = max([watch.worker, *(status_bytes("VmHWM", p.pid) for p in me.children(recursive=True))])
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        for _ in range(lines - len(watch.ends)):
            watch.update_done()
        time.sleep(0.01)


def main() -> None:
    p = argparse.ArgumentParser()
    for name in ("--model", "--data", "--out"):
        p.add_argument(name, required=True)
    p.add_argument("--rows", type=int, required=True)
    p.add_argument("--updates", type=int, required=True)
    p.add_argument("--learning-rate", type=float, required=True)
    p.add_argument("--max-length", type=int, required=True)
    p.add_argument("--pack-tokens", type=int, required=True)
    a = p.parse_args()
    watch = Watch()
    watch.loading()
    folder, ended = tempfile.mkdtemp() + "/run", threading.Event()
    noting = threading.Thread(target=note_lines, args=(Path(folder, "metrics.jsonl"), watch, ended))
    noting.start()
    posttrain.sft(model=a.model, data=a.data, output_dir=folder, method="full", dtype="bfloat16", batch_size=a.rows,
                  max_steps=a.updates, learning_rate=a.learning_rate, lr_scheduler_type="constant", warmup_steps=0,
                  max_length=a.max_length, pack_tokens=a.pack_tokens, shuffle=False, max_grad_norm=1.0)
    lines = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    updates = [m for m in lines if "loss" in m]
    watch.losses = [m["loss"] for m in updates]
    time.sleep(0.05)
    ended.set()
    noting.join()
    watch.report([m["tokens"] for m in updates], a.out, kind="posttrain", pack_tokens=a.pack_tokens)


if __name__ == "__main__":
    main()
