"""What PPO and DPO hold beside LoRA fine-tuning: 0.6B shape, the same packs of the same size, a fresh process each.

PPO runs with its four roles on one base, and with four models of their own, whose forwards and backwards are the same.
`python -m bench.align_memory` (ten minutes on two quiet cores).
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from .measure import alone, as_posttrain, machine, status_bytes, table
from .shapes import BUILD, ROOT, SHAPES, alpaca, model_folder

MB = 10**6
WORDS = 40  # of an answer: every sequence is short enough that packs are full
KINDS = {"sft": "LoRA fine-tuning", "dpo": "DPO", "ppo": "PPO, four roles on one base", "ppo4": "PPO, four models"}


def rows_files(count: int = 400) -> tuple[Path, Path]:
    """The same Alpaca rows as conversations and as pairs; the worse answer is the better one's words backwards."""
    BUILD.mkdir(parents=True, exist_ok=True)
    rows, pairs = BUILD / f"align-rows-{count}.jsonl", BUILD / f"align-pairs-{count}.jsonl"
    found = [(r["instruction"], words[:WORDS]) for r in alpaca(4 * count) if len(words := r["output"].split()) > 20]
    rows.write_text("".join(json.dumps({"instruction": q, "output": " ".join(a)}) + "\n" for q, a in found[:count]))
    pairs.write_text("".join(json.dumps({"prompt": q, "chosen": " ".join(a), "rejected": " ".join(a[::-1])}) + "\n"
                             for q, a in found[:count]))
    return rows, pairs


def four_models() -> None:
    """From here on the critic, the reward and the reference each stand on a copy of the base."""
    from posttrain.model.forward import Forward
    from posttrain.model.roles import CRITIC, POLICY, Role, Switch
    from posttrain.train import session

    opened = session.open_models

    def apart(settings, policy, forward, *more):
        models = opened(settings, policy, forward, *more)

        def own(role: Role) -> Role:
            model = copy.deepcopy(forward.model)
            heads = role.forward.heads
            return Role(Forward(model, flat=forward.flat, heads=heads), Switch(model, (POLICY, CRITIC)), role.name)

        models.reference, models.critic, models.reward.role = map(own, (models.reference, models.critic,
                                                                        models.reward.role))
        return models

    session.open_models = apart


def child(kind: str, pack: int, folder: str) -> dict:
    """Two updates -> bytes held at most above what the process held after its imports."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    import posttrain
    from posttrain.model import probe  # noqa: F401
    from posttrain.train import session  # noqa: F401

    rows, pairs = map(str, rows_files())
    keys = {"model": str(model_folder(SHAPES["0.6b"])), "dtype": "bfloat16", "pack_tokens": pack, "max_length": 256,
            "learning_rate": 1e-4, "max_steps": 2, "method": "lora", "output_dir": f"{folder}/{kind}"}
    if kind == "reward":
        posttrain.reward(data=pairs, batch_size=4, **keys)
        return {}
    if kind == "ppo4":
        four_models()
    held = status_bytes("VmRSS")
    if kind == "sft":
        run = posttrain.sft(data=rows, batch_size=32, **keys)
    elif kind == "dpo":
        run = posttrain.dpo(data=pairs, batch_size=16, **keys)
    else:
        run = posttrain.ppo(data=rows, reward=f"{folder}/reward", batch_size=32, max_new_tokens=64, minibatches=1,
                            ppo_epochs=2, **keys)
    return {"peak": status_bytes("VmHWM") - held, "tokens": [line["tokens"] for line in run.metrics]}


def main() -> int:
    p = argparse.ArgumentParser(prog="python -m bench.align_memory", description=__doc__)
    p.add_argument("--pack-tokens", type=int, default=1024)
    p.add_argument("--child", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.child:
        print(json.dumps(child(a.child[0], a.pack_tokens, a.child[1])))
        return 0
    environment = as_posttrain()
    found = {}
    with alone(), tempfile.TemporaryDirectory() as folder:
        for kind in ("reward", *KINDS):
            command = [sys.executable, "-m", "bench.align_memory", f"--pack-tokens={a.pack_tokens}", "--child", kind]
            made = subprocess.run([*command, folder], cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE)
            found[kind] = json.loads(made.stdout.splitlines()[-1])
            print(f"  {kind}: {found[kind]}", flush=True)
    least = found["sft"]["peak"]
    shown = table(["0.6B shape", "tokens of an update", "peak, MB", "of fine-tuning"],
                  [[name, f"{max(found[k]['tokens']):,}", f"{found[k]['peak'] / MB:,.0f}",
                    f"{found[k]['peak'] / least:.2f}×"] for k, name in KINDS.items()])
    where = machine()
    shown = (f"packs of {a.pack_tokens:,} tokens, bf16, {where['cores']} cores of {where['cpu']}, {where['date']}\n\n"
             + shown)
    (BUILD / "align-memory.md").write_text(shown + "\n")
    print(shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
