"""Tokens/s, losses and memory of one fine-tuning, side by side: posttrain, TRL's SFTTrainer, transformers' Trainer."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from .measure import alone, machine, median, table
from .shapes import BUILD, ROOT, SHAPES, Shape, data_file, exported, model_folder

PEERS = ROOT / ".venv-peers" / "bin" / "python"
MAX_LENGTH = 1024
LOSS_TOLERANCE = 0.005


def contestants(shape: Shape, pack_tokens: int) -> dict[str, dict]:
    """Name -> what differs. The peers run each update as one micro-batch and as four, whichever suits them better."""
    fourth = max(1, shape.rows // 4)
    peers = {"trainer": {"kind": "trainer", "micro": shape.rows}, "trainer/4": {"kind": "trainer", "micro": fourth},
             "trl-padded": {"kind": "trl-padded", "micro": shape.rows},
             "trl-padded/4": {"kind": "trl-padded", "micro": fourth},
             "trl-packed": {"kind": "trl-packed", "micro": shape.rows},
             "trl-packed/4": {"kind": "trl-packed", "micro": fourth},
             "trainer, bf16 weights": {"kind": "trainer", "micro": shape.rows, "weights": "bfloat16"}}
    return {"posttrain": {"pack_tokens": pack_tokens}} | peers


def run_one(name: str, extra: dict, shape: Shape, updates: int, files: dict[str, Path]) -> dict:
    """One contestant in a process of its own; its report."""
    ours = name == "posttrain"
    out = BUILD / "report.json"
    out.unlink(missing_ok=True)
    arguments = {"model": files["model"], "out": out, "rows": shape.rows, "updates": updates,
                 "learning-rate": shape.learning_rate}
    arguments |= {"data": files["data"], "max-length": MAX_LENGTH} if ours else {"ids": files["ids"]}
    arguments |= {k.replace("_", "-"): v for k, v in extra.items()}
    command = [sys.executable if ours else PEERS, f"bench/contestants/{'ours' if ours else 'peer'}.py"]
    command += [str(x) for k, v in arguments.items() for x in (f"--{k}", v)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BENCH_STARTED": str(time.time()), "HF_HUB_OFFLINE": "1",
                                "TOKENIZERS_PARALLELISM": "true"}
    load = os.getloadavg()[0]
    with (BUILD / f"log-{name.replace('/', '-by-').replace(', ', '-').replace(' ', '-')}.txt").open("w") as log:
        done = subprocess.run([str(c) for c in command], cwd=ROOT, env=environment, stdout=log, stderr=log)
    if done.returncode or not out.exists():
        raise SystemExit(f"{name} failed (exit {done.returncode}); see {log.name}")
    report = json.loads(out.read_text()) | {"load_before": load}
    print(f"  {name:<22} {report['tokens_per_second']:9.1f} tok/s  peak {report['peak_mib']:7.0f} MiB  "
          f"first update {report['first_update_s']:5.1f} s  last loss {report['losses'][-1]:.4f}", flush=True)
    return report


def summarize(runs: dict[str, list[dict]]) -> dict[str, dict]:
    """Medians over the repeats; the largest relative loss difference from posttrain over all updates."""
    reference = runs.get("posttrain", next(iter(runs.values())))[0]["losses"]
    summary = {}
    for name, reports in runs.items():
        gap = max(abs(a - b) / b for r in reports for a, b in zip(r["losses"], reference, strict=False))
        summary[name] = {k: median([r[k] for r in reports]) for k in
                         ("tokens_per_second", "peak_mib", "worker_mib", "first_update_s")} | {"loss_gap": gap}
    return summary


def render(shape: Shape, updates: int, summary: dict[str, dict], where: dict) -> str:
    """The markdown table, with what it rests on in one line and the two ratios under it."""
    rows = [[name, f"{s['tokens_per_second']:,.0f}", f"{s['peak_mib']:,.0f}", f"{s['worker_mib']:,.0f}",
             f"{s['first_update_s']:.1f}", f"{s['loss_gap']:.2%}"] for name, s in summary.items()]
    text = [f"{shape.name} shape, {shape.rows} Alpaca rows per update, {updates} updates, bf16 compute over float32 "
            f"weights, {where['cores']} cores of {where['cpu']}, {where['date']}.", "",
            table(["", "tokens/s", "peak MiB", "worker MiB", "first update s", "loss differs by"], rows)]
    peers = {n: s for n, s in summary.items() if n != "posttrain" and "bf16 weights" not in n}
    if "posttrain" in summary and peers:
        ours = summary["posttrain"]
        fastest = max(peers, key=lambda n: peers[n]["tokens_per_second"])
        leanest = min(peers, key=lambda n: peers[n]["peak_mib"])
        speed = ours["tokens_per_second"] / peers[fastest]["tokens_per_second"]
        memory = (ours["peak_mib"] + ours["worker_mib"]) / peers[leanest]["peak_mib"]
        text += ["", f"{speed:.2f}× the tokens/s of the fastest peer ({fastest}); {memory:.2f}× the memory of the "
                     f"leanest ({leanest}), our worker process included."]
    return "\n".join(text)


def main(argv: list[str] | None = None) -> int:
    p = argparse.ArgumentParser(prog="python -m bench.sft", description=__doc__)
    p.add_argument("--shape", choices=list(SHAPES), default="7m")
    p.add_argument("--updates", type=int, help="default: 40 for 7m, 6 for 0.6b")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--rows", type=int, help="rows per update")
    p.add_argument("--pack-tokens", type=int, default=4096)
    p.add_argument("--only", help="comma-separated contestants")
    a = p.parse_args(argv)
    shape = SHAPES[a.shape]
    if a.rows:
        shape = Shape(**{**vars(shape), "rows": a.rows})
    updates = a.updates or shape.updates
    chosen = contestants(shape, a.pack_tokens)
    if a.only:
        chosen = {n: chosen[n] for n in a.only.split(",")}
    if not PEERS.exists() and set(chosen) - {"posttrain"}:
        raise SystemExit("the peers' environment is missing; run `make bench-peers`")
    with alone():
        count = shape.rows * updates
        files = {"model": model_folder(shape), "data": data_file(shape, count),
                 "ids": exported(shape, count, MAX_LENGTH)}
        where, runs = machine(), {n: [] for n in chosen}
        for repeat in range(a.repeats):
            print(f"{shape.name}, round {repeat + 1} of {a.repeats}", flush=True)
            for name, extra in chosen.items():  # A B C A B C: a slow spell of the machine meets all of them
                runs[name].append(run_one(name, extra, shape, updates, files))
    summary = summarize(runs)
    text = render(shape, updates, summary, where)
    (BUILD / f"sft-{shape.name}.json").write_text(json.dumps(
        {"machine": where, "shape": shape.name, "rows": shape.rows, "updates": updates, "summary": summary,
         "runs": runs}, indent=1))
    (BUILD / f"sft-{shape.name}.md").write_text(text + "\n")
    print("\n" + text)
    off = [n for n, s in summary.items() if s["loss_gap"] > LOSS_TOLERANCE and "bf16 weights" not in n]
    if off:
        print(f"\nlosses differ by more than {LOSS_TOLERANCE:.1%}: {', '.join(off)}")
    return 1 if off else 0


if __name__ == "__main__":
    sys.exit(main())
