"""Statements are files with a header, found by name."""

from __future__ import annotations

import pytest

from nimburion.backends.sql_files import Statements, check_header, read_migrations
from nimburion.backends.sqlite.connection.opening import MIGRATIONS, PACKAGE, split_statements

HEADER = "-- What.\n-- Inputs: a\n-- Result: b\n-- Locks: c\n-- Atomic: d\n"


def test_a_statement_comes_without_its_header() -> None:
    sql = Statements(PACKAGE)
    assert sql["gates"].startswith("SELECT")
    assert "gates" in set(sql)


def test_a_statement_that_has_no_file() -> None:
    with pytest.raises(LookupError, match="has no statement 'nothing'"):
        Statements(PACKAGE)["nothing"]


def test_a_whole_header_passes() -> None:
    check_header("x.sql", HEADER)


@pytest.mark.parametrize("label", ["Inputs", "Result", "Locks", "Atomic"])
def test_a_header_that_leaves_something_out(label: str) -> None:
    with pytest.raises(ValueError, match=rf"x.sql: .*{label}"):
        check_header("x.sql", HEADER.replace(f"-- {label}: ", "-- other: "))


def test_migrations_are_numbered_without_a_gap() -> None:
    numbers = [number for number, _, _ in read_migrations(PACKAGE, MIGRATIONS)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_script_is_split_at_its_statements() -> None:
    script = "CREATE TABLE a (\n  x, -- ; not here\n  y\n);\nINSERT INTO a VALUES (';\n', 1);\n"
    assert len(split_statements(script)) == 2
