"""Each promise names tests, and these tests are there."""

from __future__ import annotations

import re

from tests.house.tree import ROOT

PAGE = ROOT / "docs" / "explanation" / "what-we-promise.md"
PROMISES = 10
HANDLERS_PAGE = ROOT / "docs" / "explanation" / "where-handlers-run.md"


def promises() -> dict[int, list[tuple[str, str]]]:
    """Return the tests (file, name) of each promise, by its number."""
    found: dict[int, list[tuple[str, str]]] = {}
    number = 0
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## (\d+)\. ", line):
            number = int(heading[1])
            found[number] = []
        elif test := re.match(r"- `([\w/.]+)::(\w+)`", line):
            found[number].append((test[1], test[2]))
    return found


def is_there(path: str, name: str) -> bool:
    """Tell whether a file has a test of that name."""
    file = ROOT / path
    return file.exists() and bool(
        re.search(rf"^\s*(?:async )?def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    )


def test_each_promise_has_its_tests() -> None:
    assert list(promises()) == list(range(1, PROMISES + 1))
    assert [number for number, tests in promises().items() if not tests] == []


def test_the_named_tests_exist() -> None:
    named = [test for tests in promises().values() for test in tests]
    assert [f"{path}::{name}" for path, name in named if not is_there(path, name)] == []


def test_each_note_of_the_table_of_handlers_names_tests_that_exist() -> None:
    table, _, notes = HANDLERS_PAGE.read_text(encoding="utf-8").partition("## The tests")
    numbers = re.findall(r"^(\d+)\. `tests/", notes, re.MULTILINE)
    assert set(re.findall(r"\((\d+)\)", table)) == set(numbers)
    rows = [line for line in table.partition("## What a harmful")[2].splitlines() if "|" in line]
    cells = [cell for row in rows[2:] for cell in row.strip("| ").split(" | ")[1:]]
    assert [cell for cell in cells if not re.search(r"\(\d+\)$", cell)] == []
    named = re.findall(r"`([\w/.]+)::(\w+)`", notes)
    assert len(named) >= len(numbers)
    assert [f"{path}::{name}" for path, name in named if not is_there(path, name)] == []


def test_a_missing_test_is_seen() -> None:
    assert not is_there("tests/docs/test_promises.py", "test_nowhere")
    assert not is_there("tests/docs/nowhere.py", "test_a_missing_test_is_seen")
    assert is_there("tests/docs/test_promises.py", "test_a_missing_test_is_seen")
