"""Every link inside the docs leads somewhere, every page is reached, every guide row is shown."""

from __future__ import annotations

import re
from pathlib import Path

from tests.docs.pages import Page, every_page, read
from tests.house.tree import ROOT

GUIDE_MAP = ROOT / "docs" / "reference" / "guide-map.md"
LATER = set[str]()
"""Rows of the guide that a later issue brings."""


def broken_links(page: Page) -> list[str]:
    """Return the links of a page that lead nowhere in the checkout."""
    return [f"{page.name}: {link}" for link in page.links if not leads_somewhere(page, link)]


def leads_somewhere(page: Page, link: str) -> bool:
    """Tell whether a link leads to a file, and to a heading in it where it names one."""
    if re.match(r"[a-z]+:", link):
        return True
    name, _, heading = link.partition("#")
    target = (page.path.parent / name).resolve() if name else page.path
    if not target.exists():
        return False
    return not heading or (target.suffix == ".md" and heading in read(target).headings)


def rows() -> dict[str, list[str]]:
    """Return the links of each row of the guide map, by its number."""
    found = {}
    for line in GUIDE_MAP.read_text(encoding="utf-8").splitlines():
        if row := re.match(r"\| (G\d+) \|", line):
            found[row[1]] = re.findall(r"\]\(([^)]+)\)", line)
    return found


def has_example(link: str) -> bool:
    """Tell whether a block that the tests run stands under the heading of a link."""
    name, _, heading = link.partition("#")
    path = (GUIDE_MAP.parent / name).resolve()
    return path.exists() and any(
        block.runs and block.heading == heading for block in read(path).blocks
    )


def test_no_link_is_broken() -> None:
    assert [link for page in every_page() for link in broken_links(page)] == []


def test_a_broken_link_is_seen() -> None:
    page = Page(ROOT / "README.md", (), (), ("docs/nowhere.md", "README.md#nothing", "dev.py"))
    assert broken_links(page) == ["README.md: docs/nowhere.md", "README.md: README.md#nothing"]


def test_each_page_is_reached_from_the_index() -> None:
    index = ROOT / "docs" / "index.md"
    seen, ahead = {index}, [index]
    while ahead:
        here = ahead.pop()
        for link in read(here).links:
            target = Path(here.parent / link.partition("#")[0]).resolve()
            if target.suffix == ".md" and target.exists() and target not in seen:
                seen.add(target)
                ahead.append(target)
    assert {page.name for page in every_page() if page.path not in seen} <= {"README.md"}


def test_each_row_of_the_guide_has_an_example_that_runs() -> None:
    assert list(rows()) == [f"G{number}" for number in range(1, 21)]
    without = [row for row, links in rows().items() if row not in LATER and not links]
    broken = [link for links in rows().values() for link in links if not has_example(link)]
    assert (without, broken) == ([], [])


def test_a_missing_example_is_seen() -> None:
    assert not has_example("../how-to/nowhere.md#x")
    assert not has_example("guide-map.md#the-guide-row-by-row")
