"""TRL's SFTTrainer or transformers' Trainer on rows whose ids and labels are given. Runs in the peers' environment."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from bench.measure import Watch


class Clock(TrainerCallback):
    """Notes the end of each update and its loss."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def on_step_end(self, args, state, control, **kwargs):
        self.watch.update_done()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.watch.losses.append(logs["loss"])


def collate(pad: int, rows: list[dict]) -> dict[str, torch.Tensor]:
    """Right padding; padding is masked by position, never by its id."""
    longest = max(len(r["input_ids"]) for r in rows)
    def padded(key: str, fill: int, values=None) -> torch.Tensor:
        return torch.tensor([(r[key] if values is None else values(r)) + [fill] * (longest - len(r["input_ids"]))
                             for r in rows])
    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", -100),
            "attention_mask": padded("input_ids", 0, lambda r: [1] * len(r["input_ids"]))}


def main() -> None:
    p = argparse.ArgumentParser()
    p.add_argument("--kind", choices=["trl-padded", "trl-packed", "trainer"], required=True)
    for name in ("--model", "--ids", "--out"):
        p.add_argument(name, required=True)
    p.add_argument("--rows", type=int, required=True)
    p.add_argument("--micro", type=int, required=True)
    p.add_argument("--updates", type=int, required=True)
    p.add_argument("--learning-rate", type=float, required=True)
    p.add_argument("--weights", choices=["float32", "bfloat16"], default="float32")
    a = p.parse_args()
    watch = Watch()
    watch.loading()
    rows = [json.loads(line) for line in Path(a.ids).read_text().splitlines()][:a.rows * a.updates]
    tokens = [sum(len(r["input_ids"]) for r in rows[i:i + a.rows]) for i in range(0, len(rows), a.rows)]
    # float32 masters with bf16 autocast, as posttrain keeps them; --weights bfloat16 trains the bf16 weights alone.
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=a.weights)
    tokenizer = AutoTokenizer.from_pretrained(a.model)
    settings = {
        "output_dir": tempfile.mkdtemp(), "max_steps": a.updates, "per_device_train_batch_size": a.micro,
        "gradient_accumulation_steps": a.rows // a.micro, "learning_rate": a.learning_rate,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "bf16": a.weights == "float32", "gradient_checkpointing": False, "logging_steps": 1, "save_strategy": "no",
        "report_to": "none", "disable_tqdm": True, "train_sampling_strategy": "sequential", "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    shared = {"model": model, "train_dataset": Dataset.from_list(rows), "processing_class": tokenizer,
              "callbacks": [Clock(watch)]}
    if a.kind == "trainer":
        trainer = Trainer(args=TrainingArguments(**settings),
                          data_collator=lambda b: collate(tokenizer.pad_token_id, b), **shared)
    else:
        packed = a.kind == "trl-packed"
        trainer = SFTTrainer(args=SFTConfig(**settings, max_length=None, padding_free=packed), **shared)
    trainer.train()
    watch.report(tokens, a.out, kind=a.kind, micro=a.micro, weights=a.weights)


if __name__ == "__main__":
    main()
