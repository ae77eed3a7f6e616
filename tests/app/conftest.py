"""A tiny model with a tokenizer of its own, and rows for it, made in a second."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "sun", "moon", "sky")


def pairs() -> list[dict[str, str]]:
    return [{"instruction": f"say {a} then {b}", "input": "", "output": f"{a} {b}."} for a in WORDS for b in WORDS]


@pytest.fixture(scope="session")
def rows(tmp_path_factory) -> Path:
    """144 Alpaca rows."""
    path = tmp_path_factory.mktemp("data") / "rows.json"
    path.write_text(json.dumps(pairs(), indent=1), "utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A folder with random weights (Qwen3 shape, 2 layers) and a byte-level tokenizer without a template."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from posttrain.app.scratch import make_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tokenizer((f"{p['instruction']} {p['output']} User: Assistant: 你好" for p in pairs()), 400, folder)
    config = Qwen3Config(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True,
                         max_position_embeddings=512)
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)
    return folder
