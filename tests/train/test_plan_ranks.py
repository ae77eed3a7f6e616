"""What a plan says of several GPUs, by hand."""

import pytest

from posttrain.app.plan import make_plan
from posttrain.core.config import make_settings
from posttrain.train.plan_ranks import NETWORK, NVLINK, SPEED, Job, spread

FULL = Job(sharded=True, total=1000, trained=1000, layer=100, root=200, size=2, alone=20_000, of_pack=7, flops=SPEED)
LORA = Job(sharded=False, total=1000, trained=10, layer=100, root=200, size=2, alone=3_000, of_pack=7, flops=SPEED)


def test_shards_hold_a_part_and_what_is_gathered():
    assert spread(FULL, 1).memory == 20_000 and spread(FULL, 1).sent == 0
    four = spread(FULL, 4)
    # 16 bytes a parameter over four; root and two layers in bf16; their gradients in bf16 and float32; the pack
    assert four.memory == 16 * 250 + (200 + 200) * 2 + (200 + 100) * 6 + 7
    assert four.sent == 0.75 * 1000 * (2 + 2 + 4)
    assert four.speedup == pytest.approx(4)  # a second of computing hides the sending


def test_adapters_send_their_gradients_alone():
    assert spread(LORA, 1).memory == 3_000 and spread(LORA, 8).memory == 3_000 + 40
    assert spread(LORA, 8).sent == 2 * 7 / 8 * 10 * 4


def test_beyond_a_machine_the_network_counts():
    assert spread(FULL, 8).sending == spread(FULL, 8).sent / NVLINK
    assert spread(FULL, 16).sending == pytest.approx(15 / 16 * 8000 / NETWORK, rel=1e-3)
    slow = Job(True, 10**12, 10**12, 10**10, 10**9, 2, 1, 0, SPEED)  # sends longer than it computes
    assert spread(slow, 16).speedup == pytest.approx(16 * 1 / (15 / 16 * 8e12 / NETWORK))


def test_the_plan_of_a_model_tells_it(tiny_model):
    asked = make_settings({"model": str(tiny_model), "processes": 6, "method": "full"})
    found = make_plan(asked, has_data=False, memory=80)
    rows = found["processes"]["full"]
    assert [row["gpus"] for row in rows] == [1, 2, 4, 6] == [row["gpus"] for row in found["processes"]["lora"]]
    assert rows[0]["sent"] == 0 and rows[1]["sent"] == found["parameters"] * 8 // 2
    alone = make_plan(make_settings({"model": str(tiny_model)}), has_data=False, memory=80)
    assert alone["processes"] == {}
