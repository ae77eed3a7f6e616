"""`report_to`: a library that cannot start is one message, and nothing of the run is left in the way."""

from __future__ import annotations

import sys
import types

import pytest

import posttrain
from posttrain.core.errors import UserError


class Refused(Exception):
    """What wandb raises: its own base class, no built-in one."""


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(("name", "raised", "fix"), [
    ("wandb", Refused("api_key not configured (no-tty)"), "wandb login"),
    ("trackio", ValueError("no such space"), "drop trackio from report_to")])
def test_a_library_that_cannot_start(tiny_model, rows, tmp_path, monkeypatch, name, raised, fix):
    def init(**facts):
        raise raised

    fake = types.ModuleType(name)
    fake.init = init
    if name == "wandb":
        fake.Error = Refused
    monkeypatch.setitem(sys.modules, name, fake)
    with pytest.raises(UserError, match=f"{name} could not be started") as e:
        posttrain.sft(model=tiny_model, data=rows, max_steps=1, report_to=name, output_dir=tmp_path / "run")
    assert e.value.where == "report_to" and e.value.found == str(raised) and fix in e.value.fix
    assert not (tmp_path / "run").exists()
