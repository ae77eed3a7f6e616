"""Whether too many rows are dropped: the share, the texts, the max_length that would keep 99 %."""

from types import SimpleNamespace

import pytest

from posttrain.core.errors import UserError
from posttrain.core.sequence import Row
from posttrain.data.judge import Head, check_lost, smallest_keeping
from posttrain.data.ledger import Ledger


def settings(**more):
    return SimpleNamespace(**{"max_lost": 0.05, "max_length": 100, "pack_tokens": 4096, **more})


def name(key: str) -> str:
    return key.replace("max_length", "max-length").replace("_", " ").replace("-", "_")


def head(trained, **dropped) -> Head:
    ledger = Ledger(rows_read=trained, rows_trained=trained)
    for reason, count in dropped.items():
        for _ in range(count):
            ledger.drop(name(reason))
    return Head(ledger, [], False, "", first_lost={name(r): "a.jsonl:7" for r in dropped})


def row(*messages) -> Row:
    return Row("conversation", "a:1", messages=[dict(zip(("role", "content"), m, strict=False)) for m in messages])


def test_as_much_as_max_lost_passes():
    made = head(95, longer_than_max_length=5)
    check_lost(made.ledger, settings(), made)
    check_lost(Ledger(), settings())


def test_overlong_rows_name_the_max_length_that_keeps_99_percent():
    made = head(3680, longer_than_max_length=300, empty_answer=20)
    made.keep_99 = 1877
    with pytest.raises(UserError) as e:
        check_lost(made.ledger, settings(), made)
    assert str(e.value) == (
        "error: too many rows are dropped: longer than max_length\n"
        "  where:    a.jsonl:7 is the first\n"
        "  found:    320 of the first 4,000 rows: 300 longer than max_length, 20 empty answer\n"
        "  expected: at most 0.05 of the rows (max_lost)\n"
        "  fix:      set max_length: 1877, which would keep 99 % of the rows, or allow it with max_lost: 0.08")


def test_pack_tokens_must_grow_with_max_length():
    made = head(1, longer_than_max_length=1)
    made.keep_99 = 5000
    with pytest.raises(UserError) as e:
        check_lost(made.ledger, settings(), made)
    assert e.value.fix.startswith("set max_length: 5000 and pack_tokens: 5000, which would keep 99 % of the rows")


@pytest.mark.parametrize(("reason", "message", "fix"), [
    ("longer than max_length", "all rows are dropped: longer than max_length",
     "raise max_length (now 100), or allow it with max_lost: 1"),
    ("empty answer", "all rows are dropped: empty answer",
     "name the column that holds the answers (columns: response=…), or allow it with max_lost: 1"),
    ("malformed row", "all rows are dropped: malformed row",
     "mend the rows, or see each of them with `posttrain data check`, or allow it with max_lost: 1"),
    ("nothing to train", "all rows are dropped: nothing to train",
     "see the rows with `posttrain data show`, or allow it with max_lost: 1")])
def test_all_rows_lost(reason, message, fix):
    made = head(0, **{reason.replace(" ", "_"): 12})
    with pytest.raises(UserError) as e:
        check_lost(made.ledger, settings(), made)
    assert (e.value.message, e.value.fix) == (message, fix)


def test_the_names_of_too_long_count_as_one():
    made = head(0, empty_answer=4, longer_than_max_length=2, first_exchange_longer_than_max_length=3)
    with pytest.raises(UserError, match="all rows are dropped: first exchange longer than max_length"):
        check_lost(made.ledger, settings(), made)


def test_at_an_epochs_end_the_ledger_is_enough():
    with pytest.raises(UserError) as e:
        check_lost(head(90, longer_than_max_length=10).ledger, settings())
    assert (e.value.where, e.value.found) == ("data", "10 of 100 rows: 10 longer than max_length")


@pytest.mark.parametrize("needs", [[150] * 10, list(range(101, 201)), [101] * 5 + [9000] * 3, [500], [101, 102]])
@pytest.mark.parametrize("rows", [20, 100, 250, 1000])
def test_smallest_keeping_is_the_smallest(needs, rows):
    lost = [(row(("user", str(n))), n) for n in needs]

    def drops(doubt, length):
        return [int(r.messages[0]["content"]) > length for r in doubt]

    allowed = rows // 100
    expected = None if len(needs) <= allowed else next(
        n for n in range(101, 9001) if sum(need > n for need in needs) <= allowed)
    assert smallest_keeping(lost, rows, 100, drops) == expected
