"""Names are standard terms: no retired word, no `x_of`, no two classes of one name."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.house.tree import ROOT, committed_files, parse, python_files, relative

WORDS = ROOT / "tests" / "house" / "retired_words.txt"
SOURCES = python_files("src")
UNCHECKED = (
    "tests/house/retired_words.txt",
    "tests/house/test_vocabulary.py",
    "benchmarks/results/",  # printed by earlier versions
    "docs/how-to/move-from-celery.md",  # names of Celery
    "docs/pictures/",  # compressed
)
NAMED = python_files("src", "tests", "benchmarks", "website")


PHRASES_ROOTS = (
    "src/nimburion/backends/",
    "src/nimburion/cli/",
    "src/nimburion/config/",
    "src/nimburion/core/",
    "src/nimburion/jobs/",
    "src/nimburion/scheduler/",
    "src/nimburion/testing/",
    "docs/",
    "README.md",
)
"""Where no retired phrase may occur."""
PROSE_SUFFIXES = {".py", ".sql", ".lua", ".md"}
EMPTY_NAMES = {"util", "utils", "helper", "helpers", "manager", "managers", "common", "misc"}


class RetiredWord(NamedTuple):
    """A word that we do not use, what to use instead, and the names that may hold it."""

    word: str
    replacement: str
    exceptions: frozenset[str]
    in_prose: bool
    """Whether text must not hold it either."""


@cache
def read_retired_words() -> dict[str, RetiredWord]:
    """Return the retired words by themselves."""
    retired: dict[str, RetiredWord] = {}
    in_prose = False
    for line in WORDS.read_text(encoding="utf-8").splitlines():
        if line == "[phrases]":
            break
        if line.startswith("["):
            in_prose = line == "[everywhere]"
        elif line and not line.startswith("#"):
            one = parse_line(line, in_prose=in_prose)
            assert one.word not in retired
            retired[one.word] = one
    return retired


@cache
def read_retired_phrases() -> dict[str, str]:
    """Return the retired phrases with what to write instead."""
    _, _, section = WORDS.read_text(encoding="utf-8").partition("[phrases]\n")
    lines = [line for line in section.splitlines() if line and not line.startswith("#")]
    return dict(line.split(" | ") for line in lines)


def find_retired_phrases(text: str) -> list[str]:
    """Return the retired phrases of a text, also those with a line break inside."""
    joined = " ".join(re.sub(r"^\s*(#|--)", " ", text, flags=re.MULTILINE).lower().split())
    joined = joined.replace('" "', "")
    found = {phrase for phrase in read_retired_phrases() if phrase in joined}
    return sorted(phrase for phrase in found if re.search(rf"\b{phrase}\b", joined))


def parse_line(line: str, *, in_prose: bool) -> RetiredWord:
    """Parse `word replacement [except name, name: meaning]`."""
    entry, _, exceptions = line.partition(" except ")
    word, _, replacement = entry.strip().partition(" ")
    names = exceptions.partition(":")[0].split(", ") if exceptions else []
    return RetiredWord(word, replacement.strip(), frozenset(names), in_prose)


def split_name(name: str) -> list[str]:
    """Split a name into its words, in lower case."""
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


@cache
def collect_names(path: Path) -> frozenset[str]:
    """Return the names that a module gives to things."""
    return frozenset(list_names(parse(path)))


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
            case ast.alias(asname=str(name)):
                yield name


def find_retired(path: Path) -> list[str]:
    """Return the names of a module, its own among them, that hold a retired word."""
    names = {path.stem, path.parent.name, *collect_names(path)}
    return sorted(filter(is_retired, names))


def is_retired(name: str) -> bool:
    """Whether a name holds a retired word and is no exception to it."""
    words = read_retired_words()
    return any(one in words and name not in words[one].exceptions for one in split_name(name))


def test_no_name_holds_a_retired_word_and_each_exception_is_in_use() -> None:
    found = {relative(path): names for path in NAMED if (names := find_retired(path))}
    assert found == {}, f"see {relative(WORDS)} for the words to use"
    used = {name for path in NAMED for name in collect_names(path)}
    excepted = {name for one in read_retired_words().values() for name in one.exceptions}
    assert excepted - used == set()


def find_retired_prose(text: str) -> list[str]:
    """Return the retired words of a text that have no ordinary meaning."""
    words = {one.word for one in read_retired_words().values() if one.in_prose}
    return sorted(words.intersection(re.findall(r"[a-z]+", text.lower())))


def test_no_text_holds_a_retired_word() -> None:
    found = {
        relative(path): words
        for path in committed_files()
        if relative(path).startswith(("src/", "docs/", "tests/", "benchmarks/"))
        and not relative(path).startswith(UNCHECKED)
        and (words := find_retired_prose(path.read_text(encoding="utf-8", errors="replace")))
    }
    assert found == {}, f"see {relative(WORDS)} for the words to use"


def test_no_text_holds_a_retired_phrase() -> None:
    found = {
        relative(path): phrases
        for path in committed_files()
        if relative(path).startswith(PHRASES_ROOTS)
        and path.suffix in PROSE_SUFFIXES
        and not relative(path).startswith("docs/decisions/")
        and (phrases := find_retired_phrases(path.read_text(encoding="utf-8")))
    }
    assert found == {}, f"see {relative(WORDS)} for what to write"


def test_a_retired_phrase_is_found_over_a_line_break() -> None:
    assert find_retired_phrases("# The worker goes\n#   on, and nobody knows.") == [
        "goes on",
        "nobody",
    ]
    assert find_retired_phrases('"no answer, and it goes "\n    "on"') == ["goes on"]
    assert find_retired_phrases("It goes ontop of a nobody_role.") == []


def list_module_names() -> Iterator[tuple[str, str]]:
    """Yield the path and the name of each package and module."""
    for path in NAMED:
        yield relative(path), path.parent.name if path.name == "__init__.py" else path.stem


def test_no_package_or_module_has_a_retired_or_empty_name() -> None:
    found = [
        path
        for path, name in list_module_names()
        if is_retired(name) or EMPTY_NAMES.intersection(split_name(name))
    ]
    assert found == [], "name it after what it holds"


@pytest.mark.parametrize("name", ["bell", "job_gates", "utils", "queue_manager", "common"])
def test_a_retired_or_empty_module_name_is_found(name: str) -> None:
    assert is_retired(name) or EMPTY_NAMES.intersection(split_name(name))


def test_no_function_is_named_x_of() -> None:
    found = [
        f"{relative(path)}: {name}"
        for path in SOURCES
        for name in re.findall(r"\bdef (\w+_of)\(", path.read_text(encoding="utf-8"))
    ]
    assert found == [], "name it after what it does: find_x, make_x, parse_x"


def test_no_two_classes_of_the_package_share_a_name() -> None:
    homes = defaultdict(list)
    for path in SOURCES:
        # Classes of cases are named after what they test, those of migrations by Django.
        if {"contract", "migrations"}.isdisjoint(path.parts):
            for node in parse(path).body:
                if isinstance(node, ast.ClassDef):
                    homes[node.name].append(relative(path))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_a_retired_word_is_found_within_a_name(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import heap as shelf\nclass BellThread:\n    def open(self, last_tenure): ...\n"
    )
    assert find_retired(planted) == ["BellThread", "last_tenure", "shelf"]


def test_each_retired_word_is_rejected_and_has_a_replacement() -> None:
    for word, retired in read_retired_words().items():
        assert is_retired(f"open_{word}"), word
        assert retired.replacement, word


def test_a_retired_word_is_found_within_a_text() -> None:
    assert find_retired_prose("The worker's Doorbell; a bell-ringer.") == ["bell", "doorbell"]
    assert find_retired_prose("It stores a job behind the gate.") == []


def test_an_exception_is_one_name_only() -> None:
    assert not is_retired("store_results")
    assert is_retired("store_url")
