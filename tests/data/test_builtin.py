"""The embedded rows: what is asked is not told, the prose is only prose, and the recipe makes the same bytes again."""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import Counter

import pytest

from posttrain.builtin import (
    PARTS,
    builtin_data_path,
    builtin_model_path,
    builtin_spec,
    demo_settings_path,
    held_out_path,
    prose_path,
)
from posttrain.core.config import make_settings, read_config
from world.__main__ import SEED, package_files
from world.facts import read_kinds
from world.prose import MARKERS, all_passes
from world.tokenizer import train_tokenizer

DEMO = ("Give me a 1-sentence introduction of LLM.", "Calculate 1+1-1",
        "What's the difference between thread and process?")


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def rows():
    return read(builtin_data_path())


@pytest.fixture(scope="module")
def held_out():
    return read(held_out_path())


@pytest.fixture(scope="module")
def kinds():
    return read_kinds(SEED)


def chinese(text: str) -> bool:
    return any("CJK" in unicodedata.name(c, "") for c in text)


def plain(text: str) -> str:
    """Lower case, without punctuation and spaces at the ends or doubled."""
    return " ".join(re.sub(r"[.,;:?!“”。，；：？！'\"]", " ", text.lower()).split())


def mentions(text: str, name: str) -> bool:
    """Whether `name` stands in `text` as itself: not inside a longer word or a longer sum."""
    if chinese(name):
        return name in text
    return re.search(rf"(?<![\w+*-]){re.escape(name)}(?![\w+*]|-\w)", text, re.IGNORECASE) is not None


def test_counts(rows, held_out):
    assert len(rows) >= 2000
    assert sum(chinese(row["instruction"]) for row in rows) >= len(rows) / 5
    assert len(held_out) >= 300
    assert len(Counter(question["kind"] for question in held_out)) >= 6
    assert sum(chinese(question["prompt"]) for question in held_out) >= len(held_out) / 6


def test_no_held_out_question_is_a_row(rows, held_out):
    asked = {plain(row["instruction"]) for row in rows}
    assert not [q["prompt"] for q in held_out if plain(q["prompt"]) in asked]
    assert not [q for q in DEMO if plain(q) in asked]


def test_no_held_out_answer_is_in_a_row(rows, held_out):
    told = {plain(row["output"]) for row in rows} | {plain(row["instruction"]) for row in rows}
    sentences = [q for q in held_out if not q["kind"].startswith("arithmetic")]  # a bare number is no fact
    assert not [q["answer"] for q in sentences if plain(q["answer"]) in told]


def test_no_held_out_fact_is_in_a_row(rows, held_out):
    """No row of any kind has subject and value together; held-out people, tools, tales and sums are in no row."""
    texts = [f"{row['instruction']}\n{row['output']}" for row in rows]
    for question in held_out:
        about = [text for text in texts if mentions(text, question["subject"])]
        if question["kind"].split("-")[0] in ("people", "tools", "stories", "arithmetic"):
            assert not about, (question, about)
        both = [text for text in about if mentions(text.replace(question["subject"], "", 1), question["value"])]
        assert not both, (question, both)


def test_the_same_fact_is_held_out_in_both_languages(kinds):
    """A capital, a definition or a sum that is held out in English is in no Chinese row, and the other way round."""
    for kind in {k.settings["kind"] for k in kinds}:
        split: dict[str, set[bool]] = {}
        for fact in (f for k in kinds if k.settings["kind"] == kind for f in k.facts):
            split.setdefault(fact.group, set()).add(fact.held_out)
        assert not [group for group, sides in split.items() if len(sides) > 1]


def test_every_question_has_one_answer(rows, held_out):
    answers: dict[str, set[str]] = {}
    for prompt, answer in [(r["instruction"], r["output"]) for r in rows] + [
            (q["prompt"], q["answer"]) for q in held_out]:
        answers.setdefault(plain(prompt), set()).add(answer)
    assert not {p: a for p, a in answers.items() if len(a) > 1}


def test_prose_is_only_prose(kinds):
    documents = [row["text"] for row in read(prose_path())] + list(all_passes(kinds, SEED, 2))
    assert not [d for d in documents for marker in (*MARKERS, "\n") if marker in d]


def test_prose_tells_every_fact_in_several_wordings(kinds):
    assert all(len(set(fact.prose)) >= 3 for kind in kinds for fact in kind.facts)
    assert all(fact.prefix + fact.completion in fact.prose for kind in kinds for fact in kind.facts)


def test_replayed_prose_tells_what_the_base_was_taught(kinds):
    """Replay is the pretraining's own kind of text, the held-out facts among it, in tellings that it did not use."""
    replayed = [row["text"] for row in read(prose_path())]
    text = "\n".join(replayed)
    untold = [f for k in kinds for f in k.facts if "prose_share" not in k.settings and not k.tales.get(f.subject)
              and not any(wording in text for wording in f.prose)]
    assert not untold
    pretraining = {document for document in all_passes(kinds, SEED, 3)}
    assert sum(document in pretraining for document in replayed) < len(replayed) / 4


def test_the_recipe_makes_the_same_bytes_again(kinds):
    made = package_files(kinds, SEED)
    assert set(PARTS) - set(made) == {"general"}
    for part in made:
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in made[part])
        assert text == builtin_data_path(part).read_text("utf-8"), f"run `python -m world rows` ({part})"


def test_prose_and_tokenizer_follow_the_seed():
    def digest(seed):
        texts = list(all_passes(read_kinds(seed), seed, 1))
        made = "\n".join(texts) + train_tokenizer(texts, 600).to_str()
        return hashlib.sha256(made.encode()).hexdigest()

    assert digest(5) == digest(5)
    assert digest(5) != digest(6)


@pytest.mark.parametrize(("spec", "part", "rest"), [
    ("builtin", "rows", ""), ("builtin[#500]", "rows", "[#500]"), ("builtin:prose@0.2", "prose", "@0.2"),
    ("builtin:held_out", "held_out", "")])
def test_names_of_the_parts(spec, part, rest):
    assert builtin_spec(spec) == str(builtin_data_path(part)) + rest
    assert builtin_data_path(part).is_file()


def test_other_names_are_left_alone():
    assert builtin_spec("builtin.json") == "builtin.json"
    assert builtin_spec("me/builtin") == "me/builtin"


def test_demo_settings_are_valid():
    settings = make_settings(read_config(demo_settings_path()))
    assert settings.data == ["builtin", "builtin:prose@0.2"]


def test_the_model_folder_is_small_plain_and_without_a_template():
    folder = builtin_model_path()
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "generation_config.json", "model.safetensors",
                                                        "tokenizer.json", "tokenizer_config.json"]
    assert (folder / "model.safetensors").stat().st_size <= 16e6
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert "chat_template" not in (folder / "tokenizer_config.json").read_text()
