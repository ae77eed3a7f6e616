"""The ledger: its JSON, its balance, its sums."""

import json

import numpy as np
import pytest

from posttrain.core.errors import UserError
from posttrain.core.sequence import Sequence
from posttrain.data.ledger import Ledger


def weighted(weights):
    n = len(weights)
    return Sequence(np.arange(n, dtype=np.int32), np.asarray(weights, np.float32), np.zeros(n, np.uint8), "a:1")


def filled() -> Ledger:
    ledger = Ledger()
    ledger.add([weighted([0, 0, 1, 1])], rendered=4)
    ledger.add([weighted([0, 1]), weighted([0, 0, 0.5])], rendered=9, cut=4, was_cut=True)
    ledger.drop("overlong", rendered=70)
    ledger.drop("malformed row")
    ledger.drop("malformed row")
    return ledger


EXPECTED = {"rows": {"read": 5, "trained": 2, "cut": 1, "dropped": {"malformed row": 2, "overlong": 1}},
            "tokens": {"rendered": 83, "trained": 4, "masked": 5, "cut": 4, "dropped": 70}}


def test_json_is_exact():
    ledger = filled()
    ledger.check()
    assert json.loads(json.dumps(ledger.to_json())) == EXPECTED
    assert list(ledger.to_json()["rows"]["dropped"]) == ["malformed row", "overlong"]
    assert ledger.lost == 0.6


def test_empty_ledger_balances():
    Ledger().check()
    assert Ledger().lost == 0.0


def test_merge_and_reload():
    ledger = Ledger.from_json(json.loads(json.dumps(filled().to_json())))
    assert ledger == filled()
    ledger.merge(filled())
    ledger.check()
    assert ledger.to_json() == {
        "rows": {"read": 10, "trained": 4, "cut": 2, "dropped": {"malformed row": 4, "overlong": 2}},
        "tokens": {"rendered": 166, "trained": 8, "masked": 10, "cut": 8, "dropped": 140}}
    assert filled().to_json() == EXPECTED


def test_merge_does_not_share_reasons():
    a, b = Ledger(), filled()
    a.merge(b)
    a.drop("overlong")
    assert b.to_json() == EXPECTED


def test_a_lost_row_is_found():
    ledger = filled()
    ledger.rows_read += 1
    with pytest.raises(UserError) as e:
        ledger.check()
    assert str(e.value).splitlines()[:4] == ["error: the ledger does not balance", "  where:    rows",
                                             "  found:    6 read", "  expected: 5 = trained + dropped"]


def test_a_lost_token_is_found():
    ledger = Ledger()
    ledger.add([weighted([0, 1])], rendered=3)
    with pytest.raises(UserError) as e:
        ledger.check()
    assert (e.value.where, e.value.found, e.value.expected) == (
        "tokens", "3 rendered", "2 = trained + masked + cut + dropped")
