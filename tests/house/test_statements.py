"""Every SQL and Lua file says what it holds, each statement is described, and all are in use."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from nimburion.backends.sql_files import split_comment
from tests.house.tree import PACKAGE, parse, relative

BACKENDS = PACKAGE / "backends"
NAME_LINE = re.compile(r"^-- name: (\w+)$", re.MULTILINE)
FUNCTION = re.compile(r"^CREATE OR REPLACE FUNCTION \{schema\}\.(\w+)_\d+\(", re.MULTILINE)
MOST_FILES = 14
"""Topic files in a folder: a newcomer guesses the right one."""


def list_topic_files() -> list[Path]:
    """Return the SQL files with statements; migrations have none."""
    return sorted(path for path in PACKAGE.rglob("*.sql") if path.parent.name != "migrations")


def list_lua_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.lua"))


def get_backend(path: Path) -> str:
    return path.relative_to(BACKENDS).parts[0]


def split_descriptions(text: str) -> dict[str, str]:
    """Return the comment of each statement of a topic file, by name."""
    _, *parts = NAME_LINE.split(text)
    return {
        name: split_comment(part)[0].strip()
        for name, part in zip(parts[::2], parts[1::2], strict=True)
    }


@cache
def read_words(backend: str) -> frozenset[str]:
    """Return every string and attribute name in the Python files of a backend."""
    words = set()
    for path in (BACKENDS / backend).rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.add(node.value)
            elif isinstance(node, ast.Attribute):
                words.add(node.attr)
    return frozenset(words)


def find_unused(path: Path) -> list[str]:
    """Return the statements of a topic file that neither Python nor another function names."""
    words = read_words(get_backend(path))
    if path.parent.name != "functions":
        return [
            name
            for name in split_descriptions(path.read_text(encoding="utf-8"))
            if name not in words
        ]
    texts = [other.read_text(encoding="utf-8") for other in path.parent.glob("*.sql")]
    lines = [line for text in texts for line in text.splitlines() if not line.startswith("--")]
    sources = [*words, *(line for line in lines if not line.startswith("CREATE OR REPLACE"))]
    return [
        name
        for name in split_descriptions(path.read_text(encoding="utf-8"))
        if not any(re.search(rf"\b{name}_\d+\b", source) for source in sources)
    ]


def test_each_file_begins_with_what_it_holds() -> None:
    texts = {
        path: path.read_text(encoding="utf-8") for path in [*list_topic_files(), *list_lua_files()]
    }
    silent = [
        relative(path)
        for path, text in texts.items()
        if not text.startswith("-- ") or text.startswith("-- name:")
    ]
    assert silent == []


def test_each_statement_is_split_descriptions() -> None:
    silent = [
        f"{relative(path)}: {name}"
        for path in list_topic_files()
        for name, comment in split_descriptions(path.read_text(encoding="utf-8")).items()
        if not comment.startswith("-- ")
    ]
    assert silent == []


def test_each_script_documents_its_answer() -> None:
    """A part that several scripts share may have no keys; what it defines is its result."""
    scripts = [path for path in list_lua_files() if path.parent.parent.name == "scripts"]
    assert scripts
    assert [
        relative(path)
        for path in scripts
        if not re.search(r"^-- Keys: \w", path.read_text(encoding="utf-8"), re.MULTILINE)
    ] == []


def test_each_function_has_the_name_of_its_block() -> None:
    for path in list_topic_files():
        if path.parent.name == "functions":
            text = path.read_text(encoding="utf-8")
            made = FUNCTION.findall(text)
            assert made == list(split_descriptions(text)), relative(path)


def test_each_statement_is_used() -> None:
    assert {
        relative(path): names for path in list_topic_files() if (names := find_unused(path))
    } == {}


def test_each_lua_file_is_used() -> None:
    words = read_words("redis")
    assert [relative(path) for path in list_lua_files() if path.stem not in words] == []


def test_topics_are_few() -> None:
    folders = {path.parent for path in list_topic_files()}
    assert all(len(list(folder.glob("*.sql"))) <= MOST_FILES for folder in folders)
    assert len(list_topic_files()) >= 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("-- Top.\n\n-- name: a\n-- What.\nSELECT 1;\n", {"a": "-- What."}),
        ("-- name: a\nSELECT 1;\n\n-- name: b\n-- What.\nSELECT 2;\n", {"a": "", "b": "-- What."}),
    ],
)
def test_a_statement_without_a_description_is_found(text: str, found: dict[str, str]) -> None:
    assert split_descriptions(text) == found
