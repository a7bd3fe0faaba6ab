"""Each figure about speed comes from a file of results, and the pages show the newest ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.conditions import RESULTS
from benchmarks.publish import BLOCK, BLOCKS, PICTURE, draw_picture, fill, list_pages
from tests.house.tree import ROOT

PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "index.md",
    ROOT / "docs" / "explanation" / "how-fast-and-when-not.md",
    ROOT / "docs" / "explanation" / "scaling.md",
]
"""The pages that say how fast nimburion is."""
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
NUMBER = re.compile(r"(?<![\w.,])\d{1,3}(?:,\d{3})+(?![\w])|(?<![\w.,])\d+(?:\.\d+)?(?![\w])")
SPEED = re.compile(r"\d[\d,.]*\s*(?:%|per cent|times)?\s*(?:jobs a second|jobs/s|faster|slower)")


class Part(NamedTuple):
    """A part of a page whose figures come from the results that it links."""

    page: Path
    text: str

    @property
    def sources(self) -> list[Path]:
        """The files of results that it links."""
        paths = [(self.page.parent / link).resolve() for link in LINK.findall(self.text)]
        return [path for path in paths if path.is_relative_to(RESULTS)]


def find_parts(page: Path, text: str) -> Iterator[Part]:
    """Yield the blocks of figures, and each other paragraph with a link to results."""
    for block in BLOCK.finditer(text):
        yield Part(page, block["text"])
    for paragraph in BLOCK.sub("", text).split("\n\n"):
        part = Part(page, paragraph)
        if part.sources:
            yield part


def find_strays(part: Part) -> list[str]:
    """Return what is wrong with a part: no source, a missing file, numbers that are in no file."""
    name = part.page.name
    if not part.sources:
        return [f"{name}: no file of results is linked in: {part.text.strip()[:80]}"]
    missing = [f"{name}: {path.name} does not exist" for path in part.sources if not path.exists()]
    if missing:
        return missing
    known = {number for path in part.sources for number in NUMBER.findall(path.read_text("utf-8"))}
    shown = NUMBER.findall(LINK.sub("", part.text))
    strays = [f"{name}: {number} is in no linked file" for number in shown if number not in known]
    return strays + [f"{name}: no commit is named"] * ("ommit" not in part.text)


def test_each_figure_is_in_the_file_that_its_page_links() -> None:
    parts = [part for page in PAGES for part in find_parts(page, page.read_text("utf-8"))]
    assert len(parts) >= len(BLOCKS)
    assert [stray for part in parts for stray in find_strays(part)] == []


def test_no_speed_is_stated_without_its_file() -> None:
    found = [
        f"{page.name}: {line}"
        for page in PAGES[:2]
        for line in BLOCK.sub("", page.read_text("utf-8")).splitlines()
        if SPEED.search(line)
    ]
    assert found == []


def test_the_pages_show_the_newest_results() -> None:
    stale = [
        page.name
        for page in list_pages()
        if fill(page, page.read_text("utf-8")) != page.read_text("utf-8")
    ]
    assert stale == [], "python3 dev.py bench publish"
    assert PICTURE.read_text("utf-8") == draw_picture(), "python3 dev.py bench publish"


def test_each_block_stands_on_a_page_about_speed() -> None:
    found = {block["name"] for page in PAGES for block in BLOCK.finditer(page.read_text("utf-8"))}
    assert found == set(BLOCKS)
    assert set(list_pages()) <= set(PAGES)


@pytest.mark.parametrize(
    ("planted", "stray"),
    [
        ("| run | 1,234,567 |", "1,234,567 is in no linked file"),
        ("12.3456 µs", "12.3456 is in no linked file"),
        ("[more](benchmarks/results/nothing-20261130.md)", "nothing-20261130.md does not exist"),
    ],
)
def test_a_figure_without_a_source_is_seen(planted: str, stray: str) -> None:
    page = ROOT / "README.md"
    [text] = [
        block["text"]
        for block in BLOCK.finditer(page.read_text("utf-8"))
        if block["name"] == "rates"
    ]
    assert find_strays(Part(page, text)) == []
    assert find_strays(Part(page, f"{text}\n{planted}")) == [f"README.md: {stray}"]


def test_a_part_without_a_link_is_seen() -> None:
    [found] = find_strays(Part(ROOT / "README.md", "Commit abc: 5 jobs a second"))
    assert "no file of results" in found


@pytest.mark.parametrize("text", ["79,500 jobs a second", "6 % slower", "3 times faster"])
def test_a_speed_is_seen(text: str) -> None:
    assert SPEED.search(text)
