"""The rules of the house: who may import whom, how long a file may be, and words that do not belong here."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
ORDER = ("core", "builtin", "data", "model", "train", "eval", "app")  # a folder imports itself and those before it
SOURCES = sorted((ROOT / "posttrain").rglob("*.py"))
CODE = sorted(p for top in ("posttrain", "tests", "bench", "world") for p in (ROOT / top).rglob("*.py"))
TEXTS = [*CODE, *(p for p in ROOT.glob("*") if p.suffix in (".md", ".toml", "") and p.is_file() and p.name != ".git"),
         *(ROOT / "docs").rglob("*.md"), *(ROOT / "recipes").rglob("*.yaml"), ROOT / ".ci" / "run"]
NO_TORCH = [*(ROOT / "posttrain" / "data").rglob("*.py"),
            *(ROOT / "posttrain" / "core" / f"{name}.py" for name in (
                "config", "choices", "objectives", "errors", "sequence")),
            *(ROOT / "posttrain" / "app" / f"{name}.py" for name in (
                "cli", "arguments", "help", "verbs", "runs", "run", "resume", "screen", "data", "table"))]


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def imported(node: ast.AST, path: Path) -> list[str]:
    """Absolute names of the modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    if not node.level:
        return [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
    parts = path.relative_to(ROOT).with_suffix("").parts
    base = ".".join(parts[:len(parts) - node.level])
    return [f"{base}.{node.module}" if node.module else f"{base}.{a.name}" for a in node.names]


def ids(paths: list[Path]) -> list[str]:
    return [str(p.relative_to(ROOT)) for p in paths]


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_a_folder_imports_only_those_before_it(path):
    parts = path.relative_to(ROOT / "posttrain").parts
    if len(parts) == 1:  # the package's own __init__ and __main__
        return
    allowed = ORDER[:ORDER.index(parts[0]) + 1]
    for node in ast.walk(tree(path)):
        for name in imported(node, path):
            bits = name.split(".")
            if bits[0] == "posttrain" and len(bits) > 1 and bits[1] in ORDER:
                assert bits[1] in allowed, f"{path.name}:{node.lineno} imports {name}"


@pytest.mark.parametrize("path", NO_TORCH, ids=ids(NO_TORCH))
def test_light_files_import_nothing_heavy(path):
    module = tree(path)
    for node in ast.walk(module):
        heads = {name.split(".")[0] for name in imported(node, path)}
        assert "torch" not in heads, f"{path.name}:{node.lineno} imports torch"
    for node in module.body:
        heads = {name.split(".")[0] for name in imported(node, path)}
        assert not heads & {"transformers", "peft", "datasets", "pyarrow"}, f"{path.name}:{node.lineno} imports {heads}"


@pytest.mark.parametrize("path", CODE, ids=ids(CODE))
def test_files_and_functions_stay_short(path):
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= 350, f"{lines} lines; a file has at most 350"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 70, f"{node.name} has {length} lines; a function has at most 70"


@pytest.mark.parametrize("path", CODE, ids=ids(CODE))
def test_names_say_what_a_file_does(path):
    for part in path.relative_to(ROOT).with_suffix("").parts:
        assert not set(part.split("_")) & {"utils", "util", "common", "helpers", "helper", "manager", "misc"}


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_no_error_is_swallowed_and_nothing_is_pickled(path):
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else ""
            assert caught and "Exception" not in re.findall(r"\w+", caught), f"{path.name}:{node.lineno} catches all"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("torch.save", "torch.load"), f"{path.name}:{node.lineno}"


BANNED = [re.compile(p) for p in (
    r"\bTO" r"DO\b", r"\bFIX" r"ME\b", r"(?<![\w.$}{)/-])/wo" r"rk/", r"(?<![\w.$}{)/-])/ro" r"ot/", r"py" r"pi\.org",
    r"python" r"hosted", r"download\.py" r"torch", r"\bissue \d")]


@pytest.mark.parametrize("path", TEXTS, ids=ids(TEXTS))
def test_no_loose_ends_and_no_paths_of_one_machine(path):
    text = path.read_text("utf-8")
    for pattern in BANNED:
        found = pattern.search(text)
        assert not found, f"line {text.count(chr(10), 0, found.start()) + 1}: {found.group()}"


@pytest.mark.parametrize("path", TEXTS, ids=ids(TEXTS))
def test_a_test_that_is_named_is_there(path):
    """A promise names the file and the test that keep it."""
    for file, name in re.findall(r"(test_\w+\.py)::\s*(test_\w+)", path.read_text("utf-8")):
        there = next((ROOT / "tests").rglob(file), None)
        assert there and f"def {name}(" in there.read_text("utf-8"), f"{file}::{name}"


def test_every_test_file_has_a_name_of_its_own():
    """pytest collects test files by name alone: two of one name stop the suite."""
    names = [p.name for p in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(n for n in set(names) if names.count(n) > 1) == []
