"""The loader and its worker process: batches in order, errors that cross, no process left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import islice

import psutil
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from posttrain.core.config import make_settings
from posttrain.core.errors import RowError, UserError
from posttrain.data.ledger import Ledger
from posttrain.data.loader import Loader
from posttrain.data.render import Renderer
from posttrain.data.tokenizer import load_tokenizer
from posttrain.data.updates import Updates


def write(path, rows):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n")
    return str(path)


def alpaca(i):
    return {"instruction": f"say {i:03d}", "output": f"<{i:03d}>"}


def load(data, spec=None, **more) -> Loader:
    return Loader(make_settings({"data": data, "batch_size": 4, "num_train_epochs": 2, **more}), spec)


@pytest.fixture
def rows(tmp_path):
    return write(tmp_path / "a.jsonl", [alpaca(i) for i in range(50)])


def gone(pid: int, seconds: float = 5) -> bool:
    """Whether a process ends and is collected; one that outlived its parent may wait for init as a zombie."""
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid():
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_what_was_opened(rows):
    with load(rows) as loader:
        assert (loader.total, loader.updates_per_epoch, loader.opened.rows_per_epoch) == (26, 13, 50)
        assert loader.opened.sources == [{"spec": rows, "rows": 50, "held_out": 0, "share": None, "format": "alpaca",
                                          "not_read": []}]
        assert [f["rows"] for f in loader.files()] == [50]


def test_an_error_crosses_with_all_its_fields(tmp_path):
    with load(str(tmp_path / "none.jsonl")) as loader:
        for _ in range(2):  # and stays
            with pytest.raises(UserError) as e:
                loader.opened  # noqa: B018
            assert (e.value.message, e.value.where) == ("the data file does not exist", str(tmp_path / "none.jsonl"))


def test_a_row_error_stays_a_row_error(tmp_path):
    with load(write(tmp_path / "a.jsonl", ["{broken"])) as loader, pytest.raises(RowError) as e:
        loader.opened  # noqa: B018
    assert e.value.where == f"{tmp_path}/a.jsonl:1"


def test_a_killed_worker_is_one_clear_error(rows):
    with load(rows) as loader:
        assert loader.total == 26
        loader._process.kill()
        with pytest.raises(UserError) as e:
            loader.files()
        assert str(e.value) == ("error: the data worker was killed\n"
                                "  found:    SIGKILL (the system does that when memory runs out)\n"
                                "  fix:      start again with resume: the last checkpoint is good")
        with pytest.raises(UserError, match="the data worker was killed"):
            next(loader.batches())


def test_a_closed_loader_says_so(rows):
    loader = load(rows)
    loader.close()
    with pytest.raises(UserError, match="the data loader is closed"):
        loader.files()


def test_closing_leaves_no_process(rows):
    loader = load(rows)
    pid = loader._process.pid
    loader.close()
    assert gone(pid)
    loader.close()  # twice is fine
    loader = load(rows)
    pid = loader._process.pid
    del loader
    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_worker_leaves_signals_to_the_parent(rows, number):
    with load(rows) as loader:
        assert loader.total == 26
        os.kill(loader._process.pid, number)
        assert [f["rows"] for f in loader.files()] == [50]
        assert os.getpgid(loader._process.pid) != os.getpgid(0)  # Ctrl-C never reaches it, even while it starts


SCRIPT = """
from posttrain.core.config import make_settings
from posttrain.data.loader import Loader
loader = Loader(make_settings({{"data": {data!r}}}))
print(loader._process.pid, loader.total, flush=True)
import sys
assert "torch" not in sys.modules and "transformers" not in sys.modules
{then}
"""


def run(rows, folder, then):
    script = folder / "script.py"
    script.write_text(SCRIPT.format(data=rows, then=then))
    return subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, cwd=folder, text=True)


def test_the_worker_ends_when_its_parent_is_killed(rows, tmp_path):
    parent = run(rows, tmp_path, "import time; time.sleep(60)")
    pid = int(parent.stdout.readline().split()[0])
    assert psutil.pid_exists(pid)
    parent.kill()
    parent.communicate()
    assert gone(pid)


def test_a_plain_script_without_a_main_guard_works_and_ends(rows, tmp_path):
    (tmp_path / "queue.py").write_text("raise SystemExit('a file of the user hides a module of Python')")
    parent = run(rows, tmp_path, "")
    # the script's own folder is first on its path; the worker's path must not have it
    pid, total = parent.communicate(timeout=30)[0].split()
    assert (parent.returncode, total) == (0, "12")
    assert gone(int(pid))


def test_the_worker_imports_no_torch():
    code = "import sys; import posttrain.data.worker, posttrain.data.updates; print([m for m in sys.modules if " \
           "m.partition('.')[0] in ('torch', 'transformers', 'pydantic', 'datasets', 'pyarrow')])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    """A byte-level tokenizer without merges: one token per character of ASCII."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens(["<eos>"])
    backend.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder, chat_template="chatml")


def plain(batch):
    return (batch.step, batch.epoch, batch.epoch_ends, batch.ledger, batch.rejected,
            [(s.origin, s.ids.tolist(), s.weights.tolist(), s.reasons.tolist()) for s in batch.sequences])


def here(data, spec, **more) -> Updates:
    """The same work in this process."""
    settings = make_settings({"data": data, "batch_size": 4, "num_train_epochs": 2, **more})
    made = Updates(settings)
    made.head(partial(Renderer, spec, train_on=settings.train_on, overlong=settings.overlong))
    return made


def test_batches_are_those_of_the_work_itself(rows, spec):
    expected = [plain(b) for b in map(here(rows, spec).batch, range(26))]
    assert len(expected[0][-1]) == 4 and expected[-1][:3] == (26, 2.0, True)
    with load(rows, spec) as loader:
        assert loader.judge().ledger.rows_trained == 50
        assert [plain(b) for b in loader.batches()] == expected


def test_starting_anywhere_gives_the_same_batches(rows, spec):
    with load(rows, spec) as loader:
        expected = [plain(b) for b in loader.batches()]
        for start in (1, 13, 25, 26):
            assert [plain(b) for b in loader.batches(start)] == expected[start:]
        for start in (0, 7, 3):  # leaving one walk for another
            assert [plain(b) for b in islice(loader.batches(start), 2)] == expected[start:start + 2]
    with load(rows, spec) as loader:  # as a resumed run does
        assert [plain(b) for b in loader.batches(13)] == expected[13:]


def test_held_rows_may_be_asked_for_in_between(rows, spec):
    with load(rows, spec, eval_split=0.2) as loader:
        expected = [plain(b) for b in loader.batches()]
        found, walk = [], loader.batches()
        for batch in walk:
            found.append(plain(batch))
            if batch.step == 3:
                held = loader.held_rows()
        assert found == expected
    trained = {s[0] for b in expected for s in b[-1]}
    assert len(held.sequences) == 10 and len(trained) == 40 and not trained & {s.origin for s in held.sequences}


def test_an_error_is_raised_at_its_own_update(tmp_path, spec):
    data = write(tmp_path / "a.jsonl", [alpaca(i % 1000) for i in range(4500)] + ["{broken"] + [alpaca(0)] * 499)
    with load(data, spec, batch_size=1000, num_train_epochs=1, shuffle=False) as loader:
        steps, walk = [], loader.batches()
        loader.judge()
        with pytest.raises(RowError) as e:
            for batch in walk:
                steps.append(batch.step)
    assert steps == [1, 2, 3, 4] and e.value.where == f"{data}:4501"


def test_judge_names_the_max_length_that_is_enough(tmp_path, spec):
    data = write(tmp_path / "a.jsonl", [{"instruction": "x", "output": "y" * n} for n in range(1, 201)])
    with load(data, spec, max_length=128) as loader, pytest.raises(UserError) as e:
        loader.judge()
    assert e.value.message == "too many rows are dropped: first exchange longer than max_length"
    enough = int(e.value.fix.split("max_length: ")[1].split(",")[0])
    for length, lost in ((enough, 2), (enough - 1, 3)):  # 99 % of 200 rows
        whole = here(data, spec, max_length=length, batch_size=200).batch(0)
        assert len(whole.rejected) == lost


def test_all_answers_empty(tmp_path, spec):
    data = write(tmp_path / "a.jsonl", [{"instruction": "x", "output": ""}] * 5)
    with load(data, spec) as loader, pytest.raises(UserError) as e:
        loader.judge()
    assert e.value.message == "all rows are dropped: empty answer"
    assert e.value.found == "5 of the first 5 rows: 5 empty answer"


def test_a_worker_killed_in_a_walk(rows, spec):
    with load(rows, spec, max_steps=10_000) as loader, pytest.raises(UserError, match="the data worker was killed"):
        for batch in loader.batches():
            if batch.step == 5:
                loader._process.kill()
            assert batch.step < 1000


def test_a_bug_in_the_worker_is_no_riddle(rows, capfd):
    with load(rows, "no tokenizer at all") as loader, pytest.raises(UserError) as e:
        loader.judge()
    assert str(e.value) == ("error: the data worker stopped\n"
                            "  found:    exit status 1\n"
                            "  fix:      this is a bug: please report the traceback it printed above")
    assert capfd.readouterr().err.splitlines()[-1].startswith("AttributeError: 'str' object has no attribute")


def test_real_rows_balance(shared_data, spec):
    data = str(shared_data / "stanford_alpaca" / "alpaca_data.json.gz") + "[#2000]"
    ledger = Ledger()
    with load(data, spec, batch_size=64, num_train_epochs=1, max_length=512, max_lost=0.5) as loader:
        loader.judge()
        for batch in loader.batches():
            ledger.merge(batch.ledger)
    ledger.check()
    made = ledger.to_json()
    assert made["rows"]["read"] == 2000 and made["rows"]["trained"] > 1500
    assert set(made["rows"]["dropped"]) == {"empty answer", "first exchange longer than max_length"} or (
        set(made["rows"]["dropped"]) == {"first exchange longer than max_length"})


@pytest.mark.slow
def test_a_million_rows_start_fast_seek_fast_and_stay_flat(tmp_path, spec):
    data = write(tmp_path / "a.jsonl", [json.dumps(alpaca(i % 1000)) for i in range(1_000_000)])
    start = time.perf_counter()
    with load(data, spec, batch_size=16) as loader:
        next(loader.batches())
        assert time.perf_counter() - start < 8
        worker = psutil.Process(loader._process.pid)
        before = worker.memory_full_info().uss
        assert len(list(islice(loader.batches(), 1000))) == 1000
        assert worker.memory_full_info().uss < before + 16e6

        def seconds(update):
            began = time.perf_counter()
            next(loader.batches(update))
            return time.perf_counter() - began

        seconds(5)
        assert abs(seconds(10_000) - seconds(10)) < 1
        assert seconds(100_000) < 2  # the second epoch: its permutation is made anew
