"""Update n from files, with a renderer of one token per character: exact batches, ledgers and rejected rows."""

import json
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest

from posttrain.core.config import make_settings
from posttrain.core.errors import RowError, UserError
from posttrain.core.sequence import Sequence
from posttrain.data.updates import Updates


@dataclass
class Rendered:
    sequences: list = field(default_factory=list)
    dropped: str | None = None
    rendered: int = 0
    cut: int = 0
    was_cut: bool = False
    notes: tuple = ()


class Renderer:
    """One token per character; the answer is trained. Counts the rows that it renders."""

    seen: list[str] = []

    def __init__(self, *, enable_thinking, max_length):
        self.enable_thinking, self.max_length = enable_thinking, max_length
        self.spec = SimpleNamespace(chat=SimpleNamespace(switches=()), enable_thinking=None)
        self.follows = None  # not asked where the template has no switch

    def render(self, rows):
        return [self.one(row) for row in rows]

    def one(self, row):
        Renderer.seen.append(row.origin)
        prompt, answer = (row.messages[0]["content"], row.messages[-1]["content"]) if row.messages else ("", row.text)
        if answer == "refused":
            return RowError("a refused answer", found=answer)
        size = len(prompt) + len(answer)
        if size > self.max_length:
            return Rendered(dropped="longer than max_length", rendered=size)
        if not answer:
            return Rendered(dropped="empty answer", rendered=size)
        ids = np.frombuffer((prompt + answer).encode("latin-1"), np.uint8).astype(np.int32)
        weights = np.r_[np.zeros(len(prompt)), np.full(len(answer), float(answer != "zero"))].astype(np.float32)
        return Rendered([Sequence(ids, weights, np.zeros(size, np.uint8), row.origin, row.source)], rendered=size,
                        notes=("a digit",) * any(c.isdigit() for c in prompt))


def alpaca(i, answer=None):
    return {"instruction": f"say {i:03d}", "output": f"<{i:03d}>" if answer is None else answer}


def write(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def updates(data, **more) -> Updates:
    Renderer.seen = []
    return Updates(make_settings({"data": data, "batch_size": 4, "max_length": 50, "num_train_epochs": 2, **more}))


def ready(data, **more) -> Updates:
    made = updates(data, **more)
    made.head(Renderer)
    return made


def test_batches_are_the_rows_of_the_order(tmp_path):
    data = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(10)])
    made = ready(data, shuffle=False)
    batches = [made.batch(n) for n in range(made.order.total)]
    assert [(b.step, b.epoch, b.epoch_ends, len(b.sequences)) for b in batches] == [
        (1, 0.4, False, 4), (2, 0.8, False, 4), (3, 1.0, True, 2), (4, 1.4, False, 4), (5, 1.8, False, 4),
        (6, 2.0, True, 2)]
    assert [s.origin for s in batches[1].sequences] == [f"{data}:{i}" for i in (5, 6, 7, 8)]
    assert bytes(batches[2].sequences[1].ids.astype(np.uint8)) == b"say 009<009>"
    assert batches[0].ledger.to_json() == {"rows": {"read": 4, "trained": 4, "cut": 0, "dropped": {}},
                                           "tokens": {"rendered": 48, "trained": 20, "masked": 28, "cut": 0,
                                                      "dropped": 0}}


def test_head_rows_are_rendered_once(tmp_path):
    data = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(10)])
    made = ready(data)
    assert len(Renderer.seen) == 10
    first = [made.batch(n) for n in range(3)]
    assert len(Renderer.seen) == 10
    made.batch(3)
    assert len(Renderer.seen) == 14
    again = [made.batch(n) for n in range(3)]  # sought anew: rendered anew, and the same
    assert [[s.origin for s in b.sequences] for b in first] == [[s.origin for s in b.sequences] for b in again]


def test_seeking_past_the_head_forgets_it(tmp_path):
    data = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(10)])
    walked, sought = ready(data), ready(data)
    expected = [[s.origin for s in walked.batch(n).sequences] for n in range(6)]
    assert [s.origin for s in sought.batch(1).sequences] == expected[1]
    assert [s.origin for s in sought.batch(2).sequences] == expected[2]
    assert [s.origin for s in sought.batch(0).sequences] == expected[0]


def test_the_head_is_at_most_4000_rows_and_ends_inside_an_update(tmp_path):
    data = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(5000)])
    made = ready(data, batch_size=3000, num_train_epochs=1)
    assert len(Renderer.seen) == 4000
    batches = [made.batch(n) for n in range(2)]
    assert len(Renderer.seen) == 5000
    assert sorted(s.origin for b in batches for s in b.sequences) == sorted(f"{data}:{i}" for i in range(1, 5001))


def test_the_head_tells_what_it_saw(tmp_path):
    rows = [alpaca(i) for i in range(8)] + [alpaca(8, ""), alpaca(9, "x" * 60)]
    data = write(tmp_path / "a.jsonl", rows)
    head = updates(data, shuffle=False, max_lost=0.2).head(Renderer)
    assert head.ledger.to_json()["rows"] == {"read": 10, "trained": 8, "cut": 0,
                                             "dropped": {"empty answer": 1, "longer than max_length": 1}}
    assert head.notes == {"a digit": 8}
    assert head.lengths == [7] + [12] * 8 + [67]
    assert head.first_lost == {"empty answer": f"{data}:9", "longer than max_length": f"{data}:10"}
    assert (head.thinking, head.example.origin, head.trained_share, head.keep_99) == (None, f"{data}:1", 5 / 12, None)
    assert updates(data, shuffle=False, max_lost=0.1).head(Renderer).keep_99 == 67


def test_dropped_rows_are_counted_each_time_and_listed_once(tmp_path):
    rows = [alpaca(0), alpaca(1, ""), alpaca(2, "x" * 60), alpaca(3, "zero"), "{broken", alpaca(5, "refused")]
    data = write(tmp_path / "a.jsonl", rows)
    made = ready(data, bad_rows="skip", batch_size=6, shuffle=False)
    first, second = made.batch(0), made.batch(1)
    assert first.ledger == second.ledger
    assert first.ledger.to_json() == {
        "rows": {"read": 6, "trained": 1, "cut": 0,
                 "dropped": {"empty answer": 1, "longer than max_length": 1, "malformed row": 2,
                             "nothing to train": 1}},
        "tokens": {"rendered": 97, "trained": 5, "masked": 7, "cut": 0, "dropped": 85}}
    assert len(first.sequences) == 1 and second.rejected == []
    by_line = {r["line"]: r for r in first.rejected}
    assert {r["file"] for r in first.rejected} == {data} and sorted(by_line) == [2, 3, 4, 5, 6]
    assert by_line[2] == {"file": data, "line": 2, "reason": "empty answer", "found": "7 tokens"}
    assert by_line[3]["reason"] == "longer than max_length" and by_line[4]["reason"] == "nothing to train"
    assert by_line[6] == {"file": data, "line": 6, "reason": "a refused answer", "found": "refused"}


@pytest.mark.parametrize(("bad", "message"), [("{broken", None), (alpaca(2, "refused"), "a refused answer")])
def test_bad_rows_stop_the_run_at_their_line(tmp_path, bad, message):
    data = write(tmp_path / "a.jsonl", [alpaca(0), alpaca(1), bad, alpaca(3)])
    with pytest.raises(RowError) as e:
        ready(data)
    assert e.value.where == f"{data}:3"
    assert message is None or e.value.message == message


def test_an_update_of_dropped_rows_is_empty(tmp_path):
    made = ready(write(tmp_path / "a.jsonl", [alpaca(i, "") for i in range(4)] + [alpaca(9)] * 4), shuffle=False)
    assert [len(made.batch(n).sequences) for n in range(2)] == [0, 4]


def test_eval_split_is_never_trained(tmp_path):
    data = [write(tmp_path / "a.jsonl", [alpaca(i) for i in range(50)]),
            write(tmp_path / "b.jsonl", [alpaca(i) for i in range(20)]) + "@0.25"]
    made = ready(data, eval_split=0.1)
    trained = [s.origin for n in range(made.order.total) for s in made.batch(n).sequences]
    held = made.held_rows()
    assert [s["held_out"] for s in made.opened.sources] == [5, 0] and made.opened.rows_per_epoch == 45
    assert len(held.sequences) == 5 and not {s.origin for s in held.sequences} & set(trained)
    assert held.ledger.rows_trained == 5
    main = [o for o in trained if o.startswith(data[0])]
    assert len(main) == 90 and len(set(main)) == 45
    assert {s.source for s in held.sequences} == {0}


def test_eval_data_is_rendered_whole(tmp_path):
    data = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(4)])
    other = write(tmp_path / "b.jsonl", [alpaca(0), alpaca(1, ""), alpaca(2)])
    made = ready(data, eval_data=other)
    held = made.held_rows()
    assert [s.origin for s in held.sequences] == [f"{other}:1", f"{other}:3"]
    assert held.rejected == [{"file": other, "line": 2, "reason": "empty answer", "found": "7 tokens"}]


def test_sources_are_told(tmp_path):
    data = [write(tmp_path / "a.jsonl", [alpaca(i) | {"note": "not read"} for i in range(8)]),
            write(tmp_path / "b.jsonl", [{"text": "long"}] * 3) + "@0.2"]
    assert updates(data).opened.sources == [
        {"spec": data[0], "rows": 8, "held_out": 0, "share": None, "format": "alpaca", "not_read": ["note"]},
        {"spec": data[1], "rows": 3, "held_out": 0, "share": 0.2, "format": "text", "not_read": []}]


def test_eval_data_takes_no_share(tmp_path):
    data = write(tmp_path / "a.jsonl", [alpaca(i) for i in range(4)])
    with pytest.raises(UserError, match="eval_data takes no share") as e:
        updates(data, eval_data=data + "@0.5")
    assert (e.value.found, e.value.fix) == ("@0.5", "drop it; PATH[#500] takes the first 500 rows")


def test_eval_split_of_a_single_row_is_an_error(tmp_path):
    with pytest.raises(UserError, match="eval_split holds out no row") as e:
        updates(write(tmp_path / "a.jsonl", [alpaca(0)]), eval_split=0.5)
    assert e.value.expected == "a data source of at least two rows"
