"""The learning rate of each update, to the digit."""

import pytest

from posttrain.train.schedule import learning_rate, warmup_updates


@pytest.mark.parametrize(("kind", "expected"), [
    ("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
    ("cosine", [0.5, 1, 1, 0.8535533905932737, 0.5, 0.14644660940672627])])
def test_rates(kind, expected):
    assert [learning_rate(n, 6, 1.0, kind, 2) for n in range(1, 7)] == pytest.approx(expected, abs=1e-12)


def test_warmup():
    assert warmup_updates(100, 0.03, None) == 3
    assert warmup_updates(10, 0.03, None) == 1
    assert warmup_updates(100, 0.03, 7) == 7
    assert warmup_updates(5, 0.0, 50) == 5
    assert warmup_updates(10, 0.0, None) == 0 and learning_rate(1, 10, 0.2, "linear", 0) == 0.2
