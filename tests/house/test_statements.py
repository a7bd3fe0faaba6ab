"""Every SQL and Lua file says what it takes, gives, locks and why it is atomic, and is in use."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.house.tree import PACKAGE, parse, relative

COMMENT = {".sql": "--", ".lua": "--"}
LABELS = ("inputs", "result", "locks", "atomic")


def statement_files() -> list[Path]:
    """Return every statement and script in the package."""
    return sorted(path for path in PACKAGE.rglob("*") if path.suffix in COMMENT)


def missing_labels(text: str, comment: str) -> list[str]:
    """Return the labels that the comment at the top of a file does not fill in."""
    header = []
    for line in text.splitlines():
        if not line.startswith(comment):
            break
        header.append(line.removeprefix(comment).strip())
    return [
        label
        for label in LABELS
        if not any(re.match(rf"{label}\b[^:]*:\s*\S", line, re.IGNORECASE) for line in header)
    ]


@cache
def read_words(folder: Path) -> frozenset[str]:
    """Return every string and attribute name in the Python files below a folder."""
    words = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
    return frozenset(words)


def is_referenced(path: Path) -> bool:
    """Tell whether the backend's Python names this file, or the folder of migrations it is in."""
    store = path.relative_to(PACKAGE / "backends").parts[0]
    words = read_words(PACKAGE / "backends" / store)
    if path.parent.name == "migrations":
        return "migrations" in words
    if path.parent.name == "functions":
        return is_called(path, words)
    return path.name in words or path.stem in words


def is_called(path: Path, words: frozenset[str]) -> bool:
    """Tell whether Python or another function of the server calls this one, by its format."""
    others = [other.read_text(encoding="utf-8") for other in path.parent.glob("*.sql")]
    others.remove(path.read_text(encoding="utf-8"))
    name = re.compile(rf"\b{path.stem}_\d+\b")
    return any(name.search(text) for text in [*others, *words])


def test_each_statement_has_its_header() -> None:
    unsaid = {
        relative(path): missing
        for path in statement_files()
        if (missing := missing_labels(path.read_text(encoding="utf-8"), COMMENT[path.suffix]))
    }
    assert unsaid == {}, "write '-- Inputs: … -- Result: … -- Locks: … -- Atomic: …' at the top"


def test_each_statement_is_used() -> None:
    assert [relative(path) for path in statement_files() if not is_referenced(path)] == []


def test_there_are_statements_to_look_at() -> None:
    assert len(statement_files()) >= 5


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("-- Inputs: a\n-- Result: b\n-- Locks: c\n-- Atomic: d\nSELECT 1", []),
        ("-- Enqueue.\n-- inputs: a\n--   more\n-- result: b\n-- locks: c\nSELECT 1", ["atomic"]),
        ("-- Inputs:\n-- Result: b\n-- Locks: c\n-- Atomic: d", ["inputs"]),
        ("SELECT 1 -- Inputs: a", list(LABELS)),
    ],
)
def test_a_gap_is_seen(text: str, missing: list[str]) -> None:
    assert missing_labels(text, "--") == missing
