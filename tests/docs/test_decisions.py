"""Records of decisions: short, listed once in order, and marked where a later one changed them."""

from __future__ import annotations

import re

from tests.house.tree import ROOT

FOLDER = ROOT / "docs" / "decisions"
RECORDS = {path.name[:4]: path.read_text(encoding="utf-8") for path in FOLDER.glob("0*.md")}
MAX_WORDS = 2_800
_CHANGE = re.compile(r"\b(?:Changes|Replaces|Extends|[Ii]t changes)\b(.*?)(?:[;:]|\.\s|\.$|$)")


def read_status(record: str) -> str:
    """Return the first paragraph of a record."""
    return " ".join(record.split("\n\n")[1].split())


def find_changed(status: str) -> set[str]:
    """Return the numbers of the records that a record says it changes."""
    return {
        number for part in _CHANGE.findall(status) for number in re.findall(r"\[(\d{4})\]", part)
    }


def test_each_record_begins_with_its_status() -> None:
    statuses = {number: read_status(text) for number, text in RECORDS.items()}
    begin = ("Status: ", "**Accepted**")
    assert [n for n, status in statuses.items() if not status.startswith(begin)] == []


def test_a_record_names_those_that_changed_it() -> None:
    statuses = {number: read_status(text) for number, text in RECORDS.items()}
    unmarked = [
        (earlier, later)
        for later, status in statuses.items()
        for earlier in find_changed(status)
        if earlier in statuses and f"[{later}]" not in statuses[earlier]
    ]
    assert unmarked == []


def test_the_table_lists_each_record_once_in_order_with_those_that_changed_it() -> None:
    table = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(\d{4})\]\(\1[^)]*\) \| .* \| (.*) \|$", table, re.MULTILINE)
    assert [number for number, _ in rows] == sorted(RECORDS)
    for number, state in rows:
        named = re.findall(r"\d{4}", state)
        status = read_status(RECORDS[number])
        assert [later for later in named if f"[{later}]" not in status] == [], number
        changing = [n for n, text in RECORDS.items() if number in find_changed(read_status(text))]
        assert sorted(changing) == [n for n in named if n in changing], number


def test_no_record_is_long_or_lists_old_names() -> None:
    long = {number for number, text in RECORDS.items() if len(text.split()) > MAX_WORDS}
    assert long == set()
    assert [number for number, text in RECORDS.items() if "## Old and new names" in text] == []
