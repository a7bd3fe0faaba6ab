"""The table of all public names is generated from the code."""

from __future__ import annotations

import pytest

from tests.house.tree import ROOT
from website.names import make_page, read_first_sentence

PAGE = ROOT / "docs/reference/names.md"
MAKE = "python -m website.names docs/reference/names.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == make_page(), f"run `{MAKE}`"


def test_each_name_has_one_line() -> None:
    rows = [line for line in make_page().splitlines() if line.startswith("| `")]
    names = [row.split("`")[1] for row in rows]
    assert len(names) == len({*names}) > 300
    assert all(row.count(" | ") == 2 for row in rows)


@pytest.mark.parametrize(
    ("docstring", "first"),
    [
        ("Store one job.", "Store one job."),
        ("Store one job and\nreturn its id. Then wait.", "Store one job and return its id."),
        ("0 to 9. `Priority` has names.", "0 to 9."),
        ("At most 1.5 s, e.g. less\n\nMore.", "At most 1.5 s, e.g. less"),
    ],
)
def test_the_first_sentence_of_a_docstring(docstring: str, first: str) -> None:
    assert read_first_sentence(docstring) == first
