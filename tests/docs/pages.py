"""README and docs as data: pages, their headings, and the fenced blocks below them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.house.tree import ROOT

FENCE = re.compile(r"^(`{3,})(.*)$")
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*$")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block."""

    info: tuple[str, ...]
    """What stands behind the fence: `python`, `python no-run`, `yaml file=config.yaml` …"""
    text: str
    line: int
    """The first line of the text, from 1."""
    heading: str
    """The anchor of the heading it stands under."""

    @property
    def runs(self) -> bool:
        """Whether the tests run it."""
        return self.info[:1] == ("python",) and "no-run" not in self.info

    @property
    def file(self) -> str | None:
        """The file it is the content of."""
        names = [word.removeprefix("file=") for word in self.info if word.startswith("file=")]
        return names[0] if names else None

    @property
    def extended_file(self) -> str | None:
        """The file to whose end it is added."""
        names = [word.removeprefix("add-to=") for word in self.info if word.startswith("add-to=")]
        return names[0] if names else None

    @property
    def is_command(self) -> bool:
        """Whether it is a shell script that the tests run."""
        return self.info == ("sh", "run")

    @property
    def is_output(self) -> bool:
        """Whether it says what the block before it prints."""
        return self.info == ("text", "output")


class Page(NamedTuple):
    """One Markdown file."""

    path: Path
    headings: tuple[str, ...]
    blocks: tuple[Block, ...]
    links: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its path in the checkout."""
        return self.path.relative_to(ROOT).as_posix()


def every_page() -> list[Page]:
    """README and all that lies below docs."""
    return [read(path) for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]]


def read(path: Path) -> Page:
    """Take a Markdown file apart."""
    return parse(path, path.read_text(encoding="utf-8"))


def parse(path: Path, text: str) -> Page:
    """Take a Markdown text apart; a fence that never ends is an error."""
    headings: list[str] = []
    blocks: list[Block] = []
    prose: list[str] = []
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        if fence := FENCE.match(line):
            body = block_lines(lines, fence[1], f"{path}:{number}")
            here = headings[-1] if headings else ""
            blocks.append(Block(tuple(fence[2].split()), "\n".join(body), number + 1, here))
        elif heading := HEADING.match(line):
            headings.append(anchor(heading[1]))
            prose.append(line)
        else:
            prose.append(re.sub(r"`[^`]*`", "", line))
    return Page(path, tuple(headings), tuple(blocks), tuple(LINK.findall("\n".join(prose))))


def block_lines(lines: Iterator[tuple[int, str]], fence: str, where: str) -> list[str]:
    """Read on to the end of a block."""
    body: list[str] = []
    for _, line in lines:
        if line.rstrip() == fence:
            return body
        body.append(line)
    raise AssertionError(f"{where}: this block never ends")


def anchor(heading: str) -> str:
    """Return the anchor that viewers give a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def rows_below(path: Path, heading: str) -> list[str]:
    """What stands in the first column of the table below a heading."""
    table = path.read_text(encoding="utf-8").split(heading)[1].split("\n\n")[1]
    return [name for line in table.splitlines() for name in re.findall(r"^\| `(\w+)`", line)]
