"""The two models and the rows every contestant is given."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("POSTTRAIN_DATA", ROOT.parent / "shared" / "data"))
BUILD = ROOT / "build" / "bench"
CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
          "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@dataclass(frozen=True)
class Shape:
    """A randomly initialised Qwen3 with a real tokenizer; `rows` per update and updates of a full measurement."""

    name: str
    tokenizer: str
    config: dict
    rows: int
    updates: int
    learning_rate: float


SHAPES = {s.name: s for s in (
    Shape("7m", "tokenizers/minimind", {
        "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 32, "vocab_size": 6400, "max_position_embeddings": 2048}, 16, 40, 1e-3),
    Shape("0.6b", "qwen3_tokenizer", {
        "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "max_position_embeddings": 40960}, 8, 6, 1e-4),
)}


def model_folder(shape: Shape) -> Path:
    """A Hugging Face folder with weights in bf16, the tokenizer and a ChatML template; made once."""
    folder = BUILD / f"model-{shape.name}"
    if (folder / "done").exists():
        return folder
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(SHARED / shape.tokenizer)
    tokenizer.chat_template = CHATML
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    config = Qwen3Config(**shape.config, tie_word_embeddings=True, rope_theta=1e6, bos_token_id=None,
                         eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    torch.set_default_dtype(torch.bfloat16)
    model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "done").write_text(f"{sum(p.numel() for p in model.parameters())} parameters\n")
    return folder


def alpaca(count: int | None = None) -> list[dict]:
    """The first rows of the Stanford Alpaca file whose answer is not empty, so that none is dropped."""
    with gzip.open(SHARED / "stanford_alpaca" / "alpaca_data.json.gz", "rt", encoding="utf-8") as f:
        rows = [r for r in json.load(f) if r["output"].strip()]
    return rows[:count]


def data_file(shape: Shape, count: int) -> Path:
    """`count` Alpaca rows as JSONL, in the order of training."""
    path = BUILD / f"alpaca-{count}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in alpaca(count)), encoding="utf-8")
    return path


def exported(shape: Shape, count: int, max_length: int) -> Path:
    """The ids and labels that posttrain trains on for these rows, one JSON object per row: what the peers are given."""
    from posttrain.core.sequence import Row
    from posttrain.data.render import Renderer
    from posttrain.data.tokenizer import load_tokenizer
    renderer = Renderer(load_tokenizer(str(model_folder(shape))), train_on="all", enable_thinking=None,
                        max_length=max_length, overlong="drop")
    rows = []
    for line in data_file(shape, count).read_text("utf-8").splitlines():
        r = json.loads(line)
        prompt = f"{r['instruction']}\n{r['input']}" if r["input"] else r["instruction"]
        rows.append(Row("conversation", str(len(rows) + 1), messages=[
            {"role": "user", "content": prompt}, {"role": "assistant", "content": r["output"]}]))
    path = BUILD / f"ids-{shape.name}-{count}.jsonl"
    with path.open("w") as f:
        for rendered in renderer.render(rows):
            sequence, = rendered.sequences
            ids = [int(i) for i in sequence.ids]
            labels = [i if w else -100 for i, w in zip(ids, sequence.weights, strict=True)]
            f.write(json.dumps({"input_ids": ids, "labels": labels}) + "\n")
    return path


def clean() -> None:
    shutil.rmtree(BUILD, ignore_errors=True)
