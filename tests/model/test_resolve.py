"""What a model's name means, and what is said of a name that means nothing."""

from __future__ import annotations

import pytest

from posttrain.core.errors import UserError
from posttrain.model.resolve import resolve_model


def test_a_hub_id_is_taken_as_it_is():
    assert all(resolve_model(name).is_hub for name in ("gpt2", "Qwen/Qwen3-0.6B", "mistralai/Mistral-7B-v0.1"))


@pytest.mark.parametrize(("name", "fix"), [
    ("buitin", "did you mean builtin?"), ("builtin:x", "did you mean builtin?"), ("assitant", None),
    ("held_out.jsonl", "name an existing folder, a hub id, or `builtin`"),
    ("runs/assitant", "did you mean runs/assistant?"),
    ("../nothing", "name an existing folder, a hub id, or `builtin`")])
def test_a_name_that_no_folder_has(name, fix, tmp_path, monkeypatch):
    """A word that may be a hub id is left to the hub."""
    (tmp_path / "runs" / "assistant").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    if fix is None:
        assert resolve_model(name).is_hub
        return
    with pytest.raises(UserError, match="there is no such model folder") as caught:
        resolve_model(name)
    assert caught.value.fix == fix and caught.value.where == name
