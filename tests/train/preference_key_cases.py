"""What each key of the objectives that learn from preferences changes; cases of test_every_key.py."""

from __future__ import annotations

PAIRS = [{"prompt": f"say {a}", "chosen": f"{a} {b}.", "rejected": b} for a in "abcd" for b in "efgh"]
RANKED = [{"prompt": f"say {a}", "answers": [f"{a} {b}." for b in "efg"]} for a in "abcdefgh"]


def of_pairs(bench, verb="dpo", rows=PAIRS, **values):
    return {"verb": verb, "data": bench.path(f"{'ranked' if rows is RANKED else 'pairs'}.jsonl", rows)} | values


def changed(verb="dpo", rows=PAIRS, base=None, **values):
    """A case: these values over `base` give other weights, and are refused in supervised fine-tuning."""
    def case(bench):
        before = of_pairs(bench, verb, rows, **(base or {}))
        assert bench.differ(before, {**before, **values})
        name = next(iter(values))
        assert f"{name} changes nothing in `posttrain sft`" in bench.fails(**values)
    return case


def ranked_pairs(bench):
    values = of_pairs(bench, "reward", RANKED)
    assert bench.differ(values, {**values, "ranked_pairs": "best_worst"})
    tokens = [bench.run(**values, ranked_pairs=kind).ledger["tokens"]["rendered"] for kind in ("best_worst", "all")]
    assert tokens[1] == tokens[0] * 3 // 2


def label_smoothing(bench):
    changed(label_smoothing=0.2)(bench)
    assert "label_smoothing changes nothing under loss_type: ipo" in bench.fails(
        **of_pairs(bench, loss_type="ipo", label_smoothing=0.1))


def simpo_gamma(bench):
    changed(base={"loss_type": "simpo"}, simpo_gamma=0.5)(bench)
    assert "simpo_gamma changes nothing under loss_type: sigmoid" in bench.fails(**of_pairs(bench, simpo_gamma=0.5))


def beta(bench):
    changed(beta=0.5)(bench)
    assert "beta = 0.1: the usual one" in bench.text(**of_pairs(bench))
    assert "beta = 2.0: the default of simpo" in bench.text(**of_pairs(bench, loss_type="simpo"))


LABELS = [{"prompt": r["prompt"], "completion": r[c], "label": c == "chosen"} for r in PAIRS
          for c in ("chosen", "rejected")]


def weight(name):
    def case(bench):
        values = {"verb": "kto", "data": bench.path("labels.jsonl", LABELS)}
        assert bench.differ(values, {**values, name: 3.0})
        assert f"{name} changes nothing in `posttrain dpo`" in bench.fails(**of_pairs(bench), **{name: 3.0})
    return case


CASES = {
    "desirable_weight": weight("desirable_weight"),
    "undesirable_weight": weight("undesirable_weight"),
    "rpo_alpha": changed(rpo_alpha=1.0),
    "loss_type": changed(loss_type="hinge"),
    "center_rewards_coefficient": changed("reward", center_rewards_coefficient=0.1),
} | {case.__name__: case for case in (ranked_pairs, label_smoothing, simpo_gamma, beta)}
