"""`posttrain demo --align`: from a base to a polite assistant, by PPO and by DPO, within the bounds of docs/log.md."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_every_seed_learns_the_preference(tmp_path, seed):
    done = subprocess.run([sys.executable, "-m", "posttrain", "demo", "--align", "--json", "--seed", str(seed),
                           "--output_dir", str(tmp_path / "align")], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told.keys() == {"before", "after", "dpo", "seconds"}
    before, after, dpo = told["before"], told["after"], told["dpo"]
    assert before["preferred"] <= 0.2 and after["preferred"] >= 0.8 and dpo["preferred"] >= 0.8
    assert after["kl"] < 15 and dpo["kl"] < 15 and after["reward"] > before["reward"]
    assert after["exact_match"] >= before["exact_match"] - 0.02 and dpo["exact_match"] >= before["exact_match"] - 0.02
