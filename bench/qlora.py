"""QLoRA beside LoRA on a 0.6B shape and real GSM8K rows: what the base takes, what the run takes at its peak, the first
loss beside PEFT and bitsandbytes by hand. `python -m bench.qlora FOLDER [ROWS]`; an hour on two busy cores."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

from bench.measure import MIB, status_bytes
from bench.shapes import SHAPES, SHARED, model_folder

KEYS = {"dtype": "bfloat16", "gradient_checkpointing": True, "batch_size": 8, "pack_tokens": 1024, "max_length": 512,
        "learning_rate": 2e-4, "warmup_steps": 0, "lora_r": 16, "shuffle": False}
HELD = 16


def rows(folder: Path, count: int) -> tuple[Path, Path]:
    """`count` training rows and 16 test rows of GSM8K: the shortest of the first thousand of each, in their order."""
    made = []
    for name, number in (("train", count), ("test", HELD)):
        lines = (SHARED / "gsm8k" / f"{name}.jsonl").read_text("utf-8").splitlines()[:1000]
        kept = sorted(sorted(range(len(lines)), key=lambda i: len(lines[i]))[:number])
        path = folder / f"gsm8k-{name}-{number}.jsonl"
        path.write_text("".join(lines[i] + "\n" for i in kept), "utf-8")
        made.append(path)
    return made[0], made[1]


def frozen_parts(model) -> dict[str, float]:
    """MiB of the frozen weights: codes, their scales, and what stays whole."""
    parts = {"codes": 0, "scales": 0, "whole": 0}
    for p in model.parameters():
        state = getattr(p, "quant_state", None)
        if p.requires_grad:
            continue
        parts["whole" if state is None else "codes"] += p.numel() * p.element_size()
        if state is not None:
            held = (state.absmax, state.state2.absmax)
            parts["scales"] += sum(t.numel() * t.element_size() for t in held)
    return {name: size / MIB for name, size in parts.items()}


def train(method: str, folder: Path, count: int, steps: int | None) -> None:
    """One run in this process -> FOLDER/METHOD.json."""
    import peft  # noqa: F401 - its memory is not the run's
    import transformers  # noqa: F401

    import posttrain
    from posttrain.train import session

    data, held_out = rows(folder, count)
    found: dict = {"method": method}
    real = session.build_policy

    def build(*args, **kwargs):
        policy = real(*args, **kwargs)
        found.update(frozen=frozen_parts(policy.model), loaded=now(), loading_peak=peak())
        Path("/proc/self/clear_refs").write_text("5")  # the peak from here on is that of training
        return policy

    session.build_policy = build
    held = {name: status_bytes(name) for name in ("VmRSS", "RssAnon")}

    def now() -> float:
        return (status_bytes("VmRSS") - held["VmRSS"]) / MIB

    def peak() -> float:
        return (status_bytes("VmHWM") - held["VmRSS"]) / MIB

    ended, most = threading.Event(), [0]
    thread = threading.Thread(target=watch, args=(ended, most), daemon=True)
    thread.start()
    began = time.time()
    run = posttrain.sft(model=str(model_folder(SHAPES["0.6b"])), data=str(data), eval_data=[str(held_out)],
                        method=method, output_dir=str(folder / method), max_steps=steps, num_train_epochs=1, **KEYS)
    ended.set()
    thread.join()
    found |= {"training_peak": peak(), "private_peak": (most[0] - held["RssAnon"]) / MIB,
              "losses": [m["loss"] for m in run.metrics], "before": run.status["eval_loss_before"],
              "after": run.status["eval_loss"], "seconds": time.time() - began,
              "tokens": [m["tokens"] for m in run.metrics]}
    (folder / f"{method}.json").write_text(json.dumps(found, indent=1))


def watch(ended: threading.Event, most: list[int]) -> None:
    while not ended.wait(0.02):
        most[0] = max(most[0], status_bytes("RssAnon"))


def by_hand(folder: Path, count: int) -> None:
    """The mean loss of the first update's rows by PEFT, bitsandbytes and cross_entropy alone -> FOLDER/hand.json."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    from posttrain.data.read import open_source
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer

    base = str(model_folder(SHAPES["0.6b"]))
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16))
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear",
                                             task_type="CAUSAL_LM")).train()
    source = open_source(str(rows(folder, count)[0]))
    total = tokens = 0
    for rendered in Renderer(load_tokenizer(base)).render([source.row(i) for i in range(KEYS["batch_size"])]):
        ids = torch.tensor([[int(i) for i in rendered.sequences[0].ids]])
        trained = torch.tensor([bool(w) for w in rendered.sequences[0].weights])[1:]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1][trained].float()
        total += torch.nn.functional.cross_entropy(logits, ids[0, 1:][trained], reduction="sum").item()
        tokens += int(trained.sum())
    (folder / "hand.json").write_text(json.dumps({"loss": total / tokens, "tokens": tokens}))


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 256
    folder.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) > 3:
        method, steps = sys.argv[3], int(sys.argv[4])
        return by_hand(folder, count) if method == "hand" else train(method, folder, count, steps or None)
    model_folder(SHAPES["0.6b"])
    for method, steps in (("qlora", 0), ("hand", 0), ("lora", 4)):  # the peak is there from the first updates on
        subprocess.run([sys.executable, "-m", "bench.qlora", str(folder), str(count), method, str(steps)], check=True)
        print((folder / f"{method}.json").read_text())
    return None


if __name__ == "__main__":
    main()
