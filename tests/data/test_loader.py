"""The loader and its worker process: batches in order, errors that cross, no process left behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from posttrain.core.config import make_settings
from posttrain.core.errors import RowError, UserError
from posttrain.data.loader import Loader


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
        assert loader.opened.sources == [{"spec": rows, "rows": 50, "held_out": 0, "share": None, "format": "alpaca"}]
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
