"""Names are standard terms: no retired word, no `x_of`, no two classes of one name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.house.tree import ROOT, parse, python_files, relative

WORDS = ROOT / "tests" / "house" / "retired_words.txt"
SOURCES = python_files("src")


@cache
def read_retired_words() -> dict[str, str]:
    """Return each retired word with what to use instead."""
    lines = WORDS.read_text(encoding="utf-8").splitlines()
    return dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))


def split_name(name: str) -> list[str]:
    """Split a name into its words, in lower case."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


def list_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names that a module gives to things."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.arg():
                yield node.arg
            case ast.Name(ctx=ast.Store()):
                yield node.id
            case ast.Attribute(ctx=ast.Store()):
                yield node.attr


def find_retired(path: Path) -> list[str]:
    """Return the names of a module, its own among them, that hold a retired word."""
    words = read_retired_words()
    names = {path.stem, path.parent.name, *list_names(parse(path))}
    return sorted(name for name in names if words.keys() & set(split_name(name)))


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_name_holds_a_retired_word(path: Path) -> None:
    found = find_retired(path)
    assert found == [], f"see {relative(WORDS)} for the words to use"


@pytest.mark.parametrize("path", SOURCES, ids=relative)
def test_no_function_is_named_x_of(path: Path) -> None:
    found = [
        node.name
        for node in ast.walk(parse(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.endswith("_of")
    ]
    assert found == [], "name it after what it does: find_x, make_x, parse_x"


def test_no_two_classes_of_the_package_share_a_name() -> None:
    homes = defaultdict(list)
    for path in SOURCES:
        if "contract" not in path.parts:  # classes of cases are named after what they test
            for node in parse(path).body:
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(relative(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_a_retired_word_is_found_within_a_name(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("class BellThread:\n    def open(self, last_tenure): ...\n")
    assert find_retired(planted) == ["BellThread", "last_tenure"]


def test_each_retired_word_has_a_replacement() -> None:
    assert all(read_retired_words().values())
