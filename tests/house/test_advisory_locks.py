"""The advisory locks of PostgreSQL are in one table: the header of `base.sql`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.house.test_statements import NAME_LINE
from tests.house.tree import PACKAGE, ROOT

POSTGRES = PACKAGE / "backends" / "postgres"
FUNCTIONS = POSTGRES / "sql" / "functions"
PAGE = ROOT / "docs" / "reference" / "postgresql-tables.md"
CALL = re.compile(r"\bpg_(?:try_)?advisory\w*\((.*)")
NUMBER = re.compile(r"hashtextextended\([^()]*, (\w+|\{\w+\})\)")
ENTRY = re.compile(r"^--   (\d{4})  .*\n--         Taken by: (.*)$", re.MULTILINE)


def read_table(text: str) -> dict[str, set[str]]:
    """Return what takes each lock, by the number of the lock, as the header says."""
    return {
        number: set(re.findall(r"\b(?!shared\b)\w+(?!\w|\.py|:)", re.sub(r"\(.*?\)", "", takers)))
        for number, takers in ENTRY.findall(text)
    }


def find_locks(text: str) -> list[str]:
    """Return the number of each lock that a text takes; what is no number of ours as it stands."""
    found = (NUMBER.search(arguments) or arguments for arguments in CALL.findall(text))
    return [one if isinstance(one, str) else one[1].strip("{}") for one in found]


def find_takers(path: Path) -> list[tuple[str, str]]:
    """Return the locks of a file of functions, each with the function that takes it."""
    _, *parts = NAME_LINE.split(path.read_text(encoding="utf-8"))
    return [
        (number, name)
        for name, part in zip(parts[::2], parts[1::2], strict=True)
        for number in find_locks(part)
    ]


def test_each_lock_of_a_function_is_in_the_table() -> None:
    used: dict[str, set[str]] = {}
    for path in FUNCTIONS.glob("*.sql"):
        for number, name in find_takers(path):
            used.setdefault(number, set()).add(name)
    used["7043"] = {"NOTIFICATION_LOCK"}
    used["7047"] = {"MIGRATION_LOCK"}
    assert read_table((FUNCTIONS / "base.sql").read_text(encoding="utf-8")) == used


def test_python_takes_the_locks_of_notifications_and_of_migrations() -> None:
    texts = {path.name: path.read_text(encoding="utf-8") for path in POSTGRES.rglob("*.py")}
    used = {name: locks for name, text in texts.items() if (locks := find_locks(text))}
    assert used.keys() == {"producing.py", "migrations.py"}
    assert used["producing.py"] == ["NOTIFICATION_LOCK"]
    assert used["migrations.py"] == ["MIGRATION_LOCK"]
    assert "\nNOTIFICATION_LOCK = 7043\n" in texts["schema.py"]
    assert "\nMIGRATION_LOCK = 7047\n" in texts["schema.py"]


def test_the_page_lists_the_same_locks() -> None:
    table = read_table((FUNCTIONS / "base.sql").read_text(encoding="utf-8"))
    rows = re.findall(r"^\| (\d{4}) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert rows == sorted(table)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("PERFORM pg_advisory_xact_lock(hashtextextended(p_id, 7041));", ["7041"]),
        ("IF NOT pg_try_advisory_xact_lock(hashtextextended('{schema}.a_1', 7049)) THEN", ["7049"]),
        ("PERFORM pg_advisory_lock(12);", ["12);"]),
        ("-- an advisory lock", []),
    ],
)
def test_a_lock_is_seen(text: str, found: list[str]) -> None:
    assert find_locks(text) == found
