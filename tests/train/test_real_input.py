"""The embedded base on real rows: every ledger balances, and held-out answers get likelier."""

import pytest

import posttrain

SETS = {
    "alpaca": ("stanford_alpaca/alpaca_data.json.gz[#2220]", 220 / 2220, {}),  # a few have empty answers
    "gsm8k": ("gsm8k/train.jsonl[#2200]", 200 / 2200, {}),
    "tool calls": ("llamafactory_demo/glaive_toolcall_en_demo.json", 0.75, {"batch_size": 4, "num_train_epochs": 6}),
    "chinese": ("llamafactory_demo/alpaca_zh_demo.json", 0.25, {"num_train_epochs": 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_held_out_answers_get_likelier(name, shared_data, tmp_path):
    path, split, more = SETS[name]
    # a small vocabulary makes long rows, and the embedded base reads 1,024 tokens: what is longer is dropped
    values = {"num_train_epochs": 1, "method": "full", "learning_rate": 5e-4, "max_lost": 1.0} | more
    run = posttrain.sft(data=str(shared_data / path), eval_split=split, output_dir=str(tmp_path / "run"), **values)
    rows, tokens = run.ledger["rows"], run.ledger["tokens"]
    assert rows["read"] == rows["trained"] + sum(rows["dropped"].values())
    assert tokens["rendered"] == tokens["trained"] + tokens["masked"] + tokens["cut"] + tokens["dropped"]
    before, after = run.status["eval_loss_before"], run.status["eval_loss"]
    assert run.status["held_out_rows"] >= 200
    assert after <= 0.95 * before
    print(f"{name}: held-out loss {before:.3f} -> {after:.3f} ({(after - before) / before:+.1%}), {rows}")
