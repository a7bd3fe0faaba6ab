"""Statements are blocks of topic files, scripts are Lua files; both are found by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.backends.redis.scripts import FOLDERS
from nimburion.backends.sql_files import LuaFiles, Statements, parse_statements, read_migrations
from nimburion.backends.sqlite.connection.opening import (
    MIGRATIONS,
    PACKAGE,
    STATEMENTS,
    split_statements,
)

TWO = """\
-- What all of them share.

-- name: first
-- Says more
-- on two lines.
SELECT 1  -- this stays
FROM one;

-- name: second
DELETE FROM two;
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `made` with a folder `sql`, as Python imports it."""
    folder = tmp_path / "made" / "sql"
    folder.mkdir(parents=True)
    (tmp_path / "made" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "made", raising=False)
    return folder


def test_a_statement_comes_without_its_comment_and_semicolon() -> None:
    assert dict(parse_statements("x.sql", TWO)) == {
        "first": "SELECT 1  -- this stays\nFROM one",
        "second": "DELETE FROM two",
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("SELECT 1;\n-- name: a\nSELECT 2;", "there is SQL before the first line"),
        ("-- name: a\n-- Nothing.\n", "statement 'a' is empty"),
        ("-- name: a\n;\n", "statement 'a' is empty"),
        ("-- name:\nSELECT 1;", "'' cannot name a statement"),
        ("-- name: a-b\nSELECT 1;", "'a-b' cannot name a statement"),
    ],
)
def test_a_file_that_is_not_in_order(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.sql: {problem}"):
        list(parse_statements("x.sql", text))


def test_statements_come_in_the_order_of_their_files(package: Path) -> None:
    (package / "b.sql").write_text("-- name: one\nSELECT 1;")
    (package / "a.sql").write_text("-- name: two\nSELECT 2;\n-- name: three\nSELECT 3;")
    (package / "readme.txt").write_text("no statements")
    assert list(Statements("made", "sql")) == ["two", "three", "one"]


def test_a_name_that_is_there_twice(package: Path) -> None:
    (package / "a.sql").write_text("-- name: one\nSELECT 1;")
    (package / "b.sql").write_text("-- name: one\nSELECT 2;")
    with pytest.raises(ValueError, match=r"b\.sql: there are two statements 'one'"):
        Statements("made", "sql")


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(LookupError, match="sqlite: sql has no statement 'nothing'"):
        Statements(PACKAGE, STATEMENTS)["nothing"]


def test_a_lua_file_comes_without_its_header() -> None:
    scripts = LuaFiles("nimburion.backends.redis", *FOLDERS)
    assert scripts["promote"].startswith("continue_flows(false, true)\n")
    assert scripts.read_header_field("promote", "Keys") == "scheduled ready lane_name"
    assert scripts.read_header_field("promote", "Nothing") == ""
    keys = scripts.read_header_field("prune", "Keys").split()
    assert (keys[0], keys[-1]) == ("job", "removed_run")  # of several lines
    with pytest.raises(LookupError, match="redis has no Lua file 'nothing'"):
        scripts["nothing"]


def test_migrations_are_numbered_without_a_gap() -> None:
    numbers = [number for number, _, _ in read_migrations(PACKAGE, MIGRATIONS)]
    assert numbers == list(range(1, len(numbers) + 1))


def test_a_script_is_split_at_its_statements() -> None:
    script = "CREATE TABLE a (\n  x, -- ; not here\n  y\n);\nINSERT INTO a VALUES (';\n', 1);\n"
    assert len(split_statements(script)) == 2
