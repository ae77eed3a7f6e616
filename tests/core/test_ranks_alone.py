"""What a process knows of the others without meeting them, and which one tells an error."""

from __future__ import annotations

import threading

import pytest

from posttrain.core import ranks
from posttrain.core.errors import UserError


@pytest.fixture
def beside(monkeypatch):
    """This process as number `rank` of `world`."""
    def be(rank: int, world: int) -> None:
        for name, value in (("RANK", rank), ("WORLD_SIZE", world), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
    return be


def test_alone_nothing_is_asked_of_others(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # some cluster's word: no launcher's
    assert (ranks.world(), ranks.rank(), ranks.first(), ranks.launched()) == (1, 0, True, False)
    assert ranks.add_up([1, 2.5]) == [1.0, 2.5] == ranks.largest([1, 2.5])
    assert ranks.any_of(True) and not ranks.any_of(False) and not ranks.differs(3)
    ranks.begin("cpu")
    with ranks.one_after_the_first():
        ranks.wait()
    ranks.end()


def test_a_launcher_says_who_is_who(beside, monkeypatch):
    beside(1, 2)
    assert (ranks.world(), ranks.rank(), ranks.first(), ranks.launched()) == (2, 1, False, True)
    assert ranks.restarts() == 0
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    assert ranks.restarts() == 2


def test_a_lost_process_is_one_clear_error(beside, monkeypatch):
    beside(0, 2)
    with pytest.raises(UserError) as e, ranks.together():
        raise RuntimeError("[gloo/transport/tcp/pair.cc:535] Connection closed by peer [127.0.0.1]:2222")
    said = str(e.value)
    assert said.startswith("error: a process of this run was lost\n  where:    noticed by process 0 of 2\n")
    assert "Connection closed by peer" in said and "go on with resume: the last checkpoint is good" in said
    with pytest.raises(RuntimeError, match="shapes"), ranks.together():
        raise RuntimeError("shapes do not fit")
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    assert ranks.may_tell(e.value)
    monkeypatch.setenv("POSTTRAIN_LAUNCHER", "1")  # it tells which process it was
    assert not ranks.may_tell(e.value)


def test_one_of_all_processes_tells_an_error(beside, monkeypatch):
    waited, told = [], []

    class Store:
        def add(self, name, number):
            told.append(name)
            return len(told)

    monkeypatch.setattr(ranks.time, "sleep", waited.append)
    beside(1, 2)
    assert ranks.may_tell(UserError("x")) and waited == [3]  # before they met: after the first had its time
    beside(0, 2)
    assert ranks.may_tell(UserError("x")) and waited == [3]
    monkeypatch.setattr(ranks, "_store", Store())
    assert [ranks.may_tell(UserError("x")) for _ in range(3)] == [True, False, False]


def test_an_error_that_would_come_again_is_told_once(beside, monkeypatch, tmp_path):
    """torchrun starts all again after any failure: what was no lost process ends the next start without a word."""
    monkeypatch.setattr(ranks.time, "sleep", lambda seconds: None)
    beside(1, 2)

    def start(number: int) -> None:
        (folder := tmp_path / f"attempt_{number}" / "1").mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / "error.json"))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))

    start(0)
    assert ranks.may_tell(ranks.LostError("a process of this run was lost")) and not ranks.told_before()
    start(1)
    assert not ranks.told_before() and ranks.may_tell(UserError("no space left on the disk"))
    assert not ranks.told_before() and ranks.may_tell(UserError("the same, of another process of this start"))
    start(2)
    assert ranks.told_before() and not ranks.may_tell(UserError("no space left on the disk"))
    for without in ("", "/elsewhere/error.json"):
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", without)
        assert not ranks.told_before() and ranks.may_tell(UserError("no space left on the disk"))


def test_processes_and_gpus_must_fit(beside, monkeypatch):
    import torch

    beside(2, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError) as e:
        ranks.begin("auto")
    assert "there are more processes than GPUs" in str(e.value) and "4 processes, 2 GPUs on this" in str(e.value)
    assert "start at most 2 processes a machine" in str(e.value)
    with pytest.raises(UserError) as e:
        ranks.begin("cuda:1")
    assert "several processes cannot share one GPU" in str(e.value) and "CUDA_VISIBLE_DEVICES" in str(e.value)


def test_a_restart_knows_its_own():
    """Twice on one store, as a launcher keeps it over a restart: each start has one name, never the earlier one's."""
    from torch.distributed import HashStore

    store, names = HashStore(), []
    for _ in range(2):
        found: dict[int, str] = {}
        threads = [threading.Thread(target=lambda n=n, found=found: found.update({n: ranks.meet(store, n, 3)}))
                   for n in (1, 0, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 3 and len(set(found.values())) == 1
        names.append(found[0])
    assert names[0] != names[1]
    with pytest.raises(UserError) as e:
        ranks.meet(HashStore(), 0, 2, patience=0)
    assert "a process of this run did not come" in str(e.value) and "process 1 of 2" in str(e.value)
