"""The sandbox against hostile programs: each counts as failed, none escapes, none hangs, nothing is left of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from posttrain.core.errors import UserError
from posttrain.eval import sandbox
from posttrain.eval.sandbox import LAUNCHER, Limits, Trial, check, run

LIMITS = Limits(processes=8, memory=256 << 20, file_size=1 << 20, disk_megabytes=4, cpu_seconds=2,
                seconds=6 + os.getpid() / 1e8)  # a number of our own, by which our processes are found
SHORT = replace(LIMITS, cpu_seconds=1, seconds=2 + os.getpid() / 1e8)  # for what never ends by itself
TEST = "assert f(1) == 2"
RIGHT = "def f(x):\n    return x + 1\n"


@pytest.fixture(scope="module", autouse=True)
def locks():
    try:
        check()
    except UserError as e:
        pytest.skip(f"no sandbox here: {e.found}")


def tried(program: str, test: str = TEST, limits: Limits = LIMITS):
    return run(Trial(program, test, ("f",)), limits)


def seen(expression: str) -> object:
    """What a program inside finds: the value of an expression, or the name of its exception."""
    program = ("import os, sys, ctypes, pathlib\nPUT = pathlib.Path('/tmp/p').write_text\n"
               "libc = ctypes.CDLL(None, use_errno=True)\ndef f(x):\n    try:\n"
               f"        return {expression}\n    except BaseException as e:\n        return type(e).__name__\n")
    said = run(Trial(program, "raise LookupError(repr(f(1)))", ("f",)), LIMITS).why
    assert said.startswith("LookupError: "), said
    return eval(said.removeprefix("LookupError: "), {}, {})


def launchers() -> int:
    """Processes of our launchers that are alive; all that is inside a sandbox is forked from one."""
    mine = [f'"seconds": {limits.seconds}'.encode() for limits in (LIMITS, SHORT)]
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            count += any(number in path.read_bytes() for number in mine)
        except OSError:
            continue
    return count


def test_a_right_program_passes_and_a_wrong_one_does_not():
    assert tried(RIGHT).passed
    assert tried("def f(x):\n    return x\n").why == "AssertionError: "
    assert "SyntaxError" in tried("def f(x:\n").why or not tried("def f(x:\n").passed
    everything = "assert f([1, (2.5, None)], b={'a': {3}, 2: b'x'}) == ([1, (2.5, None)], {'a': {3}, 2: b'x'})"
    assert tried("def f(a, b):\n    return a, b\n", everything).passed
    caught = "try:\n    f(1)\nexcept ValueError:\n    pass\nelse:\n    1 / 0"
    assert tried("def f(x):\n    raise ValueError\n", caught).passed


@pytest.mark.parametrize(("expression", "expected"), [
    ("os.getuid()", 65534), ("os.getpid()", 2), ("os.getcwd()", "/tmp"),
    ("sorted(k for k in os.environ if k != 'LC_CTYPE')", []),
    ("sorted(set(os.listdir('/')) & {'etc', 'home', 'proc', 'sys', 'var', 'old'})", []),
    ("open('/etc/passwd').read()", "FileNotFoundError"), ("open(__import__('sys').prefix + '/x', 'w')", "OSError"),
    ("open('/x', 'w')", "OSError"), ("open('/dev/x', 'w')", "OSError"), ("open('/tmp/x', 'w').write('y')", 1),
    ("__import__('socket').socket()", "PermissionError"),
    ("(libc.syscall(41, 2, 1, 0), ctypes.get_errno())", (-1, 1)),
    ("(libc.socket(1, 1, 0), ctypes.get_errno())", (-1, 1)),
    ("(libc.unshare(0x10000000), ctypes.get_errno())", (-1, 1)),
    ("(libc.mount(b'none', b'/tmp', b'tmpfs', 0, None), ctypes.get_errno())", (-1, 1)),
    ("(libc.ptrace(0, 0, 0, 0), ctypes.get_errno())", (-1, 1)), ("(libc.chroot(b'/tmp'), ctypes.get_errno())", (-1, 1)),
    ("(libc.syscall(435, 0, 0), ctypes.get_errno())", (-1, 38)),
    ("(libc.syscall(56, 0x10000011, 0), ctypes.get_errno())", (-1, 1)),
    ("os.setuid(0)", "OSError"), ("os.kill(1, 9)", None),
    ("__import__('resource').setrlimit(6, (999, 999))", "ValueError"), ("bytearray(1 << 30)", "MemoryError"),
    ("(PUT('#!/bin/sh'), os.chmod('/tmp/p', 0o755), os.execv('/tmp/p', ['p']))", "PermissionError"),
    ("ctypes.c_int.in_dll(libc, 'no_such_symbol')", "ValueError")])
def test_what_the_inside_looks_like(expression, expected):
    assert seen(expression) == expected


def test_processes_are_few():
    """Before any fork bomb: the kernel refuses more than a handful."""
    count = seen("[1 for _ in range(30) if (lambda p: p or (__import__('time').sleep(1), os._exit(0)))(os.fork())]")
    assert count == "BlockingIOError" and LIMITS.processes < 10


def test_the_disk_is_small():
    assert seen("[open(f'/tmp/{i}', 'wb').write(b'x' * 999_999) for i in range(20)]") == "OSError"


PROGRAMS = r'''
#: fork bomb
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
#: thread bomb
import threading, time
while True:
    try:
        threading.Thread(target=time.sleep, args=(9,)).start()
    except RuntimeError:
        pass
#: endless loop
while True:
    pass
#: endless sleep
import time
time.sleep(10 ** 6)
#: endless output
import sys
while True:
    sys.stdout.write('x' * 10 ** 6)
    sys.stderr.write('x' * 10 ** 6)
#: all memory
x = []
while True:
    x.append(bytearray(1 << 24))
#: all the disk
import os
for i in range(10 ** 6):
    with open(f'/tmp/{i}', 'wb') as f:
        f.write(b'x' * 10 ** 6)
#: one great file
with open('/tmp/x', 'wb') as f:
    while True:
        f.write(b'x' * 10 ** 6)
#: reads the secrets
def f(x):
    return x + 1
open('/etc/passwd').read()
#: kills its parent
def f(x):
    return x + 1
import os, signal
os.kill(os.getppid(), signal.SIGKILL)
os.kill(-1, signal.SIGKILL)
1 / 0
#: stops its parent
def f(x):
    return x + 1
import os, signal
os.kill(os.getppid(), signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGSTOP)
#: deaf to signals
import signal, time
for s in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(s, lambda *a: None)
while True:
    time.sleep(1)
#: exits well
import os
os._exit(0)
#: exits well in the call
import os
def f(x):
    os._exit(0)
#: system exit
import sys
sys.exit(0)
#: equal to everything
class A(int):
    def __eq__(self, other):
        return True
    __hash__ = int.__hash__
def f(x):
    return A(7)
#: patches the tests
import builtins, json, sys
builtins.AssertionError = ValueError
sys.modules['__main__'].run_tests = lambda order: 0
json.dumps = lambda *a: '{}'
def f(x):
    return 3
#: writes its own verdict
import os, json
for n in range(64):
    try:
        os.write(n, b'{"value": {"t": "bool", "v": true}}\n' * 9)
    except OSError:
        pass
def f(x):
    return 3
#: closes the channel
import os
os.closerange(0, 64)
def f(x):
    return 2
#: floods the channel
import os
while True:
    for n in range(3, 64):
        try:
            os.write(n, b'x' * 65536)
        except OSError:
            pass
#: a value without end
def f(x):
    a = []
    a.append(a)
    return a
#: leaves a daemon
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(10 ** 6)
    os._exit(0)
def f(x):
    return 3
#: segmentation fault
import ctypes
ctypes.string_at(0)
'''
HOSTILE = dict(part.split("\n", 1) for part in PROGRAMS.split("#: ")[1:])


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_program_fails_and_leaves_nothing(name):
    began = time.monotonic()
    assert not tried(HOSTILE[name], limits=SHORT).passed
    assert time.monotonic() - began < SHORT.seconds + 15
    assert launchers() == 0
    assert tried(RIGHT).passed  # the next one is judged as if nothing had been


def test_a_missing_lock_is_named(monkeypatch, tmp_path):
    """A filter that forbids new namespaces, as many containers have: no program is run, and the error says which."""
    broken = tmp_path / "launcher.py"
    real, text = "def new_namespaces():", "user, process, network, mount and IPC namespaces: not permitted"
    broken.write_text(LAUNCHER.read_text().replace(real, f"{real}\n    raise Missing({text!r})\ndef unused():", 1))
    monkeypatch.setattr(sandbox, "LAUNCHER", broken)
    with pytest.raises(UserError, match="programs cannot be held here") as caught:
        check()
    assert "namespaces: not permitted" in caught.value.found and "seccomp" in caught.value.expected


def test_the_launcher_refuses_another_machine():
    code = "import os, runpy, sys\nreal = os.uname()\nos.uname = lambda: type(real)((*real[:4], 'riscv64'))\n" \
           f"sys.argv = ['x', sys.argv[1]]\nrunpy.run_path({str(LAUNCHER)!r}, run_name='__main__')"
    order = json.dumps({"role": "tests", "fds": [], "limits": {}})
    done = subprocess.run([sys.executable, "-c", code, order], input="", capture_output=True, text=True, timeout=60)
    assert done.returncode == sandbox.MISSING and "x86_64 only" in done.stderr


def test_nothing_of_this_process_is_inherited(monkeypatch):
    monkeypatch.setenv("SECRET", "x")
    with open(os.devnull) as kept:
        os.set_inheritable(kept.fileno(), True)
        assert seen("'SECRET' in os.environ or [n for n in range(3, 60) if n > 20 and not os.fstat(n)]") == "OSError"
