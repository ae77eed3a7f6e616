"""Each guard trips on a run that blew up, says what it saw, and stays silent on healthy ones."""

import pytest

from posttrain.train.guards import GUARDS, BlownUp, check_guards

FIRST = {"kl": 0.1, "k1": 0.01, "entropy": 0.8, "answer_tokens": 20.0, "stop_rate": 0.9, "value_loss": 0.3,
         "explained_variance": 0.1}
BLOWN = [({"kl": 80.0, "k1": 1.2}, "the policy has left its reference", "kl 80.0 nats per answer, 1.20 per token"),
         ({"ratio": 4.5}, "one collection moved the policy too far", "mean ratio to the policy that sampled: 4.50"),
         ({"value_loss": 500.0, "explained_variance": -90.0}, "the critic's loss blew up", "value loss 500"),
         ({"entropy": 1e-5}, "the policy has collapsed", "entropy 1e-05 nats per token"),
         ({"answer_tokens": 90.0, "stop_rate": 0.1}, "the answers no longer end", "90 tokens on average, 10% stop")]


@pytest.mark.parametrize(("change", "message", "seen"), BLOWN, ids=[b[1] for b in BLOWN])
def test_a_run_that_blew_up(change, message, seen):
    with pytest.raises(BlownUp) as e:
        check_guards(FIRST | change, FIRST, 12)
    said = str(e.value)
    assert said.startswith(f"error: {message}") and "where:    after update 12" in said and seen in said
    assert "(at first: kl 0.1, entropy 0.8, answer_tokens 20, " in said and "fix:      " in said


def test_every_guard_is_tried_and_healthy_runs_pass():
    assert len(BLOWN) == len(GUARDS)
    check_guards(FIRST, FIRST, 1)
    for healthy in ({"kl": 40.0, "k1": 0.2}, {"answer_tokens": 70.0}, {"entropy": 0.01}, {"explained_variance": -2.0}):
        check_guards(FIRST | healthy, FIRST, 1)
