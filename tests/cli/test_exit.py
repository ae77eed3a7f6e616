"""How a verb ends: the exit code and what stands on standard error."""

from __future__ import annotations

import errno
import sys
import types

import pytest

from posttrain.app.cli import main
from posttrain.core.errors import RowError


@pytest.fixture
def verb(monkeypatch):
    """Replace the code of `posttrain env` by a function that raises."""
    def put(error: BaseException) -> None:
        def run(command):
            raise error
        module = types.ModuleType("posttrain.app.env")
        module.main = run
        monkeypatch.setitem(sys.modules, "posttrain.app.env", module)
    return put


def test_a_row_error_exits_2_without_traceback(verb, capsys):
    verb(RowError("a row cannot be read", where="a.jsonl:21", found="}", fix="mend the line"))
    assert main(["env"]) == 2
    said = capsys.readouterr()
    assert said.err == ("error: a row cannot be read\n  where:    a.jsonl:21\n  found:    }\n"
                        "  fix:      mend the line\n")
    assert not said.out


def test_ctrl_c_exits_130(verb, capsys):
    verb(KeyboardInterrupt())
    assert main(["env"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "parts"), [
    (errno.ENOSPC, ["no space is left on the disk", "runs/x/model", "--resume"]),
    (errno.EACCES, ["permission denied", "runs/x/model"]),
    (errno.EROFS, ["read-only", "--output_dir"])])
def test_the_disk_is_named(verb, capsys, number, parts):
    verb(OSError(number, "whatever", "runs/x/model"))
    assert main(["env"]) == 2
    said = capsys.readouterr().err
    assert all(part in said for part in parts) and "Traceback" not in said


@pytest.mark.parametrize("error", [
    MemoryError(), type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 9 GiB"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")])
def test_a_full_memory_names_the_keys(verb, capsys, error):
    verb(error)
    assert main(["env"]) == 2
    said = capsys.readouterr().err
    assert "the memory ran out" in said and "pack_tokens" in said and "gradient_checkpointing" in said


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_our_own_mistakes_are_not_dressed_up(verb, error):
    verb(error())
    with pytest.raises(error):
        main(["env"])
