"""Reward models: what transformers and PEFT load is what was trained, and anybody's is read."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
import torch
from rich.console import Console

import posttrain
from posttrain.core.errors import UserError
from posttrain.data.preferences import detect_for
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer
from posttrain.model.resolve import resolve_model
from posttrain.model.reward import open_scorer

pytestmark = pytest.mark.usefixtures("in_process_module")
WORDS = ("red", "green", "blue", "one", "two", "three")
ROWS = [{"prompt": f"say {a}", "chosen": f"{a} {b}.", "rejected": b} for a in WORDS for b in WORDS if a != b]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ROWS))
    return path


def train(model, pairs, folder, **values):
    asked = {"model": model, "data": pairs, "max_steps": 8, "batch_size": 10, "dtype": "float32", "eval_split": 0.2,
             "learning_rate": 3e-3, "output_dir": folder, "console": Console(file=io.StringIO())}
    return posttrain.reward(**(asked | values))


@pytest.fixture(scope="module", params=["lora", "full"])
def run(request, tiny_model, pairs, tmp_path_factory, in_process_module):
    return train(tiny_model, pairs, tmp_path_factory.mktemp(request.param) / "run", method=request.param)


def sequences(run, count=6):
    renderer = Renderer(load_tokenizer(str(run.model_path)))
    form = detect_for("reward", list(ROWS[0]), ROWS)
    return [s for m in renderer.render([form.to_row(r, f"r:{i}") for i, r in enumerate(ROWS[:count])])
            for s in m.sequences]


def test_a_reward_model_is_learnt_and_kept(run):
    last = run.metrics[-1]
    assert last["eval_accuracy"] == 1 and last["eval_margin"] > 0.5 and last["eval_loss"] < run.metrics[0]["loss"]
    scores = open_scorer(resolve_model(run), dtype="float32")(sequences(run))
    assert all(w > v for w, v in zip(scores[::2], scores[1::2], strict=True))


def test_transformers_and_peft_load_it(run):
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    full = (run.model_path / "config.json").is_file()
    auto = AutoModelForSequenceClassification if full else AutoPeftModelForSequenceClassification
    model = auto.from_pretrained(run.model_path, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(run.model_path)
    rows = sequences(run)
    ours = open_scorer(resolve_model(run), dtype="float32")(rows)
    with torch.no_grad():
        alone = [model(input_ids=torch.from_numpy(s.ids).long()[None]).logits.item() for s in rows]
    assert np.allclose(alone, ours, atol=1e-4)
    if full and tokenizer.pad_token_id is not None:
        batch = tokenizer.pad([{"input_ids": s.ids.tolist()} for s in rows], return_tensors="pt")
        with torch.no_grad():
            together = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
        assert np.allclose(together, ours, atol=1e-4)


def test_padding_never_hides_the_stop_token(run):
    spec = load_tokenizer(str(run.model_path))
    config = json.loads((run.model_path / "tokenizer_config.json").read_text())
    pad = config["pad_token"]
    assert pad is None or spec.control[pad] not in spec.stop_ids
    if (run.model_path / "config.json").is_file():
        kept = json.loads((run.model_path / "config.json").read_text())
        assert kept.get("pad_token_id") == (None if pad is None else spec.control[pad])
        assert kept["architectures"] == ["Qwen3ForSequenceClassification"]


def test_what_else_is_scored_changes_nothing(run):
    scorer, rows = open_scorer(resolve_model(run), dtype="float32"), sequences(run)
    assert np.allclose(scorer(rows), [scorer([s])[0] for s in rows], atol=1e-5)


def test_a_resumed_reward_run_has_its_head(tiny_model, pairs, tmp_path):
    whole = train(tiny_model, pairs, tmp_path / "whole", save_steps=4)
    again = tmp_path / "again"
    shutil.copytree(whole.path, again)
    shutil.rmtree(again / "model")
    (again / "run.json").write_text(json.dumps({"status": "running"}))
    resumed = posttrain.reward(output_dir=again, resume=True, console=Console(file=io.StringIO()))
    for file in whole.model_path.glob("*.safetensors"):
        assert file.read_bytes() == (resumed.model_path / file.name).read_bytes()


def test_models_from_elsewhere(tiny_model, tmp_path):
    from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    theirs.save_pretrained(tmp_path / "theirs")
    from posttrain.core.sequence import Sequence

    rows = [Sequence(np.arange(3, 3 + n, dtype=np.int32), np.ones(n, np.float32), np.zeros(n, np.uint8), "r:1")
            for n in (4, 9)]
    theirs.config.pad_token_id = None
    with torch.no_grad():
        expected = [theirs(input_ids=torch.from_numpy(s.ids).long()[None]).logits.item() for s in rows]
    assert np.allclose(open_scorer(resolve_model(tmp_path / "theirs"), dtype="float32")(rows), expected, atol=1e-5)
    bert = BertForSequenceClassification(BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_labels=1,
                                                    num_attention_heads=2, intermediate_size=16)).eval()
    bert.save_pretrained(tmp_path / "bert")
    with torch.no_grad():
        expected = [bert(input_ids=torch.from_numpy(s.ids).long()[None]).logits.item() for s in rows]
    assert np.allclose(open_scorer(resolve_model(tmp_path / "bert"), dtype="float32")(rows), expected, atol=1e-5)
    with pytest.raises(UserError, match="this model gives words, not scores"):
        open_scorer(resolve_model(tiny_model))
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(UserError, match="several labels") as e:
        open_scorer(resolve_model(tmp_path / "three"))
    assert e.value.found == "3 labels"


def long_row(n: int):
    from posttrain.core.sequence import Sequence

    return Sequence(np.full(n, 7, np.int32), np.ones(n, np.float32), np.zeros(n, np.uint8), f"r:{n}")


@pytest.mark.parametrize(("kind", "keys", "room"), [
    ("Bert", {}, 64), ("Roberta", {"pad_token_id": 1}, 62), ("OPT", {"ffn_dim": 16, "word_embed_proj_dim": 16}, 64),
    ("DebertaV2", {}, 64), ("DebertaV2", {"position_biased_input": False, "relative_attention": True}, None),
    ("Llama", {}, None)])
def test_a_text_longer_than_the_positions(tmp_path, kind, keys, room):
    """Where positions are rows of a table a longer text is an error, before anything is computed."""
    import transformers

    config = getattr(transformers, f"{kind}Config")(**{
        "vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_labels": 1, "num_attention_heads": 2,
        "intermediate_size": 16, "max_position_embeddings": 64, "pad_token_id": 0} | keys)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config)
    model.save_pretrained(tmp_path / "model")
    scorer = open_scorer(resolve_model(tmp_path / "model"), dtype="float32")
    assert scorer.room == room and len(scorer([long_row(room or 200), long_row(3)])) == 2
    if room:
        with pytest.raises(UserError) as e:
            scorer([long_row(3), long_row(room + 1)])
        assert str(e.value) == (
            "error: a text is longer than the reward model's positions\n"
            f"  where:    reward model: {tmp_path / 'model'}\n"
            f"  found:    {room + 1} tokens (r:{room + 1})\n  expected: at most {room}\n"
            "  fix:      set max_length and max_new_tokens so that prompt and answer fit, or take a reward model that "
            "reads longer texts")


def test_a_reward_model_is_no_language_model(run, pairs, tmp_path):
    with pytest.raises(UserError, match="this is a reward model: it gives scores, not words") as e:
        posttrain.load(run)
    assert "posttrain score" in e.value.fix
