"""Whole runs of what learns from preferences on real rows: what is dropped is known, and every ledger balances."""

from __future__ import annotations

import math

import pytest

import posttrain

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def small(make_model):
    """A model of one layer, for conversations that a byte-level tokenizer makes long."""
    return make_model("small", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
                      num_key_value_heads=1, max_position_embeddings=32768)


@pytest.fixture
def learn(small, tmp_path, shared_data):
    """A few updates on rows of the real data -> the ledger, having seen that it balances and what was learnt from."""
    def run(verb: str, names: list[str], rows: int, updates: int, longest: int):
        made = getattr(posttrain, verb)(
            model=small, data=[str(shared_data / name) for name in names], batch_size=-(-rows // updates),
            max_length=longest, dtype="float32", learning_rate=1e-3, output_dir=tmp_path / "run")
        ledger, losses = made.ledger, [m["loss"] for m in made.metrics]
        assert made.status["status"] == "finished" and len(losses) == updates and all(map(math.isfinite, losses))
        assert losses[0] == pytest.approx(math.log(2), abs=1e-5 if verb == "dpo" else 0.5)
        told, tokens = ledger["rows"], ledger["tokens"]
        assert told["read"] == rows == told["trained"] + sum(told["dropped"].values()) and not told["cut"]
        assert tokens["rendered"] == tokens["trained"] + tokens["masked"] + tokens["dropped"] and not tokens["cut"]
        assert tokens["trained"] == sum(m["trained_tokens"] for m in made.metrics)
        return told
    return run


@pytest.mark.parametrize("verb", ["reward", "dpo"])
def test_every_row_of_hh_rlhf(learn, verb):
    """Of 2,312 rows five have contexts that differ and four an empty answer; nothing else is lost."""
    told = learn(verb, ["hh_rlhf/test.jsonl.gz"], rows=2312, updates=4, longest=4608)
    assert told["dropped"] == {"contexts differ": 5, "empty answer": 4}


@pytest.mark.parametrize("verb", ["reward", "dpo"])
def test_every_row_of_llama_factory(learn, verb):
    """Three files of two shapes, English and Chinese: every row is learnt from."""
    names = [f"llamafactory_demo/{name}" for name in ("dpo_en_demo.json", "dpo_zh_demo.json", "v1_dpo_demo.jsonl")]
    told = learn(verb, names, rows=610, updates=4, longest=16640)
    assert told["dropped"] == {}
