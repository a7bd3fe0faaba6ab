"""Each promise names tests, and these tests are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.tree import ROOT

PAGE = ROOT / "docs" / "explanation" / "what-we-promise.md"
PROMISES = 12
FLOWS_PAGE = ROOT / "docs" / "explanation" / "what-flows-promise.md"
FLOW_PROMISES = 27
HANDLERS_PAGE = ROOT / "docs" / "explanation" / "where-handlers-run.md"
TRANSACTIONS_PAGE = ROOT / "docs" / "explanation" / "open-transactions.md"
LIMITS_PAGE = ROOT / "docs" / "explanation" / "limits-compared.md"


def promises(page: Path = PAGE) -> dict[int, list[tuple[str, str]]]:
    """Return the tests (file, name) of each promise, by its number."""
    found: dict[int, list[tuple[str, str]]] = {}
    number = 0
    for line in page.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"(?:## )?(\d+)\. ", line):
            number = int(heading[1])
            found[number] = []
        elif test := re.match(r"\s*- `([\w/.]+)::(\w+)`", line):
            found[number].append((test[1], test[2]))
    return found


def is_there(path: str, name: str) -> bool:
    """Tell whether a file has a test of that name."""
    file = ROOT / path
    return file.exists() and bool(
        re.search(rf"^\s*(?:async )?def {name}\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    )


PAGES = pytest.mark.parametrize(
    ("page", "count"), [(PAGE, PROMISES), (FLOWS_PAGE, FLOW_PROMISES)], ids=["jobs", "flows"]
)


@PAGES
def test_each_promise_has_its_tests(page: Path, count: int) -> None:
    found = promises(page)
    assert list(found) == list(range(1, count + 1))
    assert [number for number, tests in found.items() if not tests] == []


@PAGES
def test_the_named_tests_exist(page: Path, count: int) -> None:
    named = [test for tests in promises(page).values() for test in tests]
    assert len(named) > count
    assert [f"{path}::{name}" for path, name in named if not is_there(path, name)] == []


def test_each_note_of_the_table_of_handlers_names_tests_that_exist() -> None:
    table, _, notes = HANDLERS_PAGE.read_text(encoding="utf-8").partition("## The tests")
    check_notes(table, notes)
    rows = read_rows(table.partition("## What a harmful")[2])
    cells = [cell for row in rows for cell in row[1:]]
    assert [cell for cell in cells if not re.search(r"\(\d+\)$", cell)] == []


def test_each_case_of_the_comparison_of_limits_names_tests_and_sources() -> None:
    table, _, rest = LIMITS_PAGE.read_text(encoding="utf-8").partition("## The tests")
    notes, _, sources = rest.partition("## Sources")
    check_notes(table, notes)
    rows = read_rows(table.partition("## The table")[2].partition("\n## ")[0])
    assert len(rows) >= 10
    assert [ours for _, ours, *_ in rows if not re.search(r"\(\d+\)$", ours)] == []
    named = set(re.findall(r"^- (\w): ", sources, re.MULTILINE))
    used = {
        letter for found in re.findall(r"\[(\w(?:, \w)*)\]", table) for letter in found.split(", ")
    }
    assert used == named


def test_each_cell_of_the_tables_of_open_transactions_names_tests_that_exist() -> None:
    text, _, notes = TRANSACTIONS_PAGE.read_text(encoding="utf-8").partition("## The tests")
    check_notes(text, notes)
    for table in text.split("\n## ")[1:]:
        rows = read_rows(table)
        assert len(rows) >= 3
        cells = [cell for _, *columns in rows for cell in columns]
        assert [cell for cell in cells if not re.search(r"\(\d+\)$", cell)] == []


def check_notes(table: str, notes: str) -> None:
    """Check that the numbers of a table are those of the notes, and that their tests exist."""
    numbers = re.findall(r"^(\d+)\. `(?:tests|src)/", notes, re.MULTILINE)
    assert set(re.findall(r"\((\d+)\)", table)) == set(numbers)
    named = re.findall(r"`([\w/.]+)::(\w+)`", notes)
    assert len(named) >= len(numbers)
    assert [f"{path}::{name}" for path, name in named if not is_there(path, name)] == []


def read_rows(text: str) -> list[list[str]]:
    """Return the cells of a table, without its head."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [row.strip("| ").split(" | ") for row in rows[2:]]


def test_a_missing_test_is_seen() -> None:
    assert not is_there("tests/docs/test_promises.py", "test_nowhere")
    assert not is_there("tests/docs/nowhere.py", "test_a_missing_test_is_seen")
    assert is_there("tests/docs/test_promises.py", "test_a_missing_test_is_seen")
