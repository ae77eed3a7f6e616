"""A reward function in a process of its own: it keeps its state, its errors are told, and its time limit holds."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from posttrain.app.rewards import load_function, reward_function
from posttrain.core.errors import UserError
from posttrain.train.scoring import ask_reward

ASKED = (["q1", "q2"], ["a1", "a2"], [{"answer": "a1"}, {"answer": "x"}])
SLOW = "a" * 40 + "b"  # for (a+)+$


@pytest.fixture
def made(tmp_path):
    """The text of a file, and its function's name -> the function."""
    def make(text: str, name: str = "score"):
        (path := tmp_path / "fn.py").write_text(textwrap.dedent(text))
        return load_function(path, name)
    return make


def error_of(score, asked=ASKED, **how) -> str:
    with pytest.raises(UserError) as e:
        ask_reward(score, "fn.py:score", *asked, **how)
    return str(e.value)


def is_gone(pid: int) -> bool:
    """Ended, whether or not somebody has collected it."""
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_it_keeps_what_it_likes_between_calls(made):
    score = made("""
        import os
        seen = []
        def score(prompts, answers, rows):
            seen.append((prompts, answers, rows))
            return [len(seen), os.getpid()]
        """)
    (one, pid), (two, again) = ask_reward(score, "x", *ASKED), ask_reward(score, "x", *ASKED)
    assert (one, two) == (1, 2) and pid == again != os.getpid()


def test_rows_reach_it_as_they_were_read(made):
    score = made("def score(prompts, answers, rows):\n    raise ValueError(repr((prompts, answers, rows)))")
    asked = (["é\ud83d"], ["a\n\x00"], [{"n": 3, "x": [1.5, None, {"b": True}], "at": datetime.date(2024, 2, 1)}])
    said = error_of(score, asked)
    assert repr((*asked[:2], [asked[2][0] | {"at": "2024-02-01"}])) in said


def test_what_it_prints_or_reads_is_not_ours(made, capfd):
    score = made("""
        def score(prompts, answers, rows):
            print("hello from the function")
            try:
                input()
            except EOFError:
                return [1, 2]
        """)
    assert ask_reward(score, "x", *ASKED) == [1.0, 2.0]
    assert capfd.readouterr() == ("", "hello from the function\n")


@pytest.mark.parametrize("how", ["file", "checker"])
def test_one_that_holds_the_lock(made, how):
    """Killed when its time is over, though no other thread of its process could run."""
    score = reward_function("regex:(a+)+$") if how == "checker" else made("""
        import re
        def score(prompts, answers, rows):
            return [float(re.match('(a+)+$', a) is not None) for a in answers]
        """)
    assert ask_reward(score, "x", ["", ""], ["aaa", "b"], [{}, {}], timeout=60) == [1.0, 0.0]
    began, asked = time.monotonic(), (["q"], [SLOW], [{}])
    assert error_of(score, asked, timeout=0.5) == (
        "error: the reward function does not return\n  where:    reward: fn.py:score\n"
        "  found:    no answer for 1 answers after 0.5 s\n"
        "  fix:      give its own calls a time limit, or score fewer answers at once with a smaller batch_size")
    assert time.monotonic() - began < 20
    assert score._process.returncode == -9 and "its process was killed: SIGKILL" in error_of(score, asked)


def test_what_it_started_ends_with_it(made, tmp_path):
    score = made(f"""
        import subprocess
        def score(prompts, answers, rows):
            child = subprocess.Popen(["sleep", "300"])
            open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
            child.wait()
        """)
    assert "no answer for 2 answers after 3 s" in error_of(score, timeout=3)
    pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 10
    while not is_gone(pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert is_gone(pid)


def test_one_that_raises(made, tmp_path):
    """With the innermost line of the user's own file, not of what it called."""
    score = made("""
        import json
        def score(prompts, answers, rows):
            return [json.loads(a) for a in answers]
        """)
    assert error_of(score) == (
        f"error: the reward function failed\n  where:    reward: {tmp_path / 'fn.py'}:score\n"
        f"  found:    JSONDecodeError: Expecting value: line 1 column 1 (char 0), in {tmp_path / 'fn.py'}:4\n"
        "  fix:      call it by hand on this answer: 'a1'")
    assert "found:    SystemExit: 3, in " in error_of(made("def score(*a):\n    raise SystemExit(3)"))


@pytest.mark.parametrize(("body", "said"), [
    ("os._exit(7)", "found:    its process ended with exit status 7\n"),
    ("os.kill(os.getpid(), 11)", "found:    its process was killed: SIGSEGV\n")])
def test_one_whose_process_ends(made, body, said):
    assert said in error_of(made(f"import os\ndef score(*a):\n    {body}"))


def test_a_users_own_error_comes_through(made):
    score = made("from posttrain.core.errors import UserError\ndef score(*a):\n"
                 "    raise UserError('this row is odd', where='row 3', fix='mend it')")
    assert error_of(score) == "error: this row is odd\n  where:    row 3\n  fix:      mend it"


@pytest.mark.parametrize(("returned", "said"), [
    ("[1.0]", "returned a wrong count of numbers\n  where:    reward: fn.py:score\n  found:    1\n  expected: 2, "),
    ("{}", "returned no list\n  where:    reward: FILE:score\n  found:    dict\n  expected: a list of 2 numbers"),
    ("[1.0, float('nan')]", "found:    nan for the answer 'a2'\n  expected: a number"),
    ("[1.0, None]", "found:    None for the answer 'a2'\n  expected: a number"),
    ("[1.0, '1']", "found:    '1' for the answer 'a2'\n  expected: a number"),
    ("[1.0, 10**400]", f"is no finite number\n  where:    reward: fn.py:score\n  found:    1{'0' * 199} for "),
    ("[1.0, 10**5000]", "found:    int too long to show for the answer 'a2'\n  expected: a number")])
def test_what_is_no_reward(made, tmp_path, returned, said):
    assert said.replace("FILE", str(tmp_path / "fn.py")) in error_of(made(f"def score(*a):\n    return {returned}"))


def test_attributes_are_those_of_the_function(made):
    score = made("def score(*a):\n    return [None, 3]\nscore.abstains, score.patience = True, None")
    none, three = ask_reward(score, "x", *ASKED)
    assert none != none and three == 3.0 and score.abstains and score.patience is None
    slow = made("import time\ndef score(*a):\n    time.sleep(60)\nscore.patience = 0.05")
    assert "no answer for 2 answers after 0.05 s" in error_of(slow)
    bare = made("def score(*a):\n    return [1, 2]")
    assert bare.abstains is False and not hasattr(bare, "patience")


def test_its_file_is_an_ordinary_module(made, tmp_path):
    """Dataclasses resolve their annotations; what lies beside the file is found by an import in the function too."""
    (tmp_path / "beside.py").write_text("BONUS = 2.0\n")
    score = made("""
        from __future__ import annotations
        import dataclasses
        @dataclasses.dataclass
        class Part:
            weight: float = 1.0
        def score(prompts, answers, rows):
            from beside import BONUS
            return [BONUS * Part(len(a)).weight for a in answers]
        """)
    assert ask_reward(score, "x", *ASKED) == [4.0, 4.0]


def test_it_ends_with_its_parent(tmp_path):
    """However the parent ends, and in the middle of a search that holds the lock."""
    (tmp_path / "fn.py").write_text("import os, re\nopen('pid', 'w').write(str(os.getpid()))\n"
                                    "def score(prompts, answers, rows):\n    return [float(bool(re.match('(a+)+$', "
                                    "a))) for a in answers]\n")
    for answer, end in (("a", "pass"), (SLOW, "os._exit(0)")):
        subprocess.run([sys.executable, "-c", textwrap.dedent(f"""
            import os, threading, time
            from posttrain.train.reward_process import FunctionProcess
            score = FunctionProcess("fn.py:score", file="fn.py", name="score")
            thread = threading.Thread(target=score, args=([""], [{answer!r}], [{{}}]), daemon=True)
            thread.start()
            thread.join(1)
            {end}
            """)], cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=True, timeout=60)
        pid, until = int((tmp_path / "pid").read_text()), time.monotonic() + 10
        while not is_gone(pid) and time.monotonic() < until:
            time.sleep(0.05)
        assert is_gone(pid), answer


def test_signals_to_all_processes_are_the_parents(made):
    score = made("""
        import os, signal, subprocess, sys
        def score(prompts, answers, rows):
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)
            started = subprocess.Popen(["sleep", "60"])
            started.terminate()
            if (forked := os.fork()) == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(0)
            return [started.wait(), os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1])]
        """)
    assert ask_reward(score, "x", *ASKED, timeout=50) == [-15.0, -15.0]
