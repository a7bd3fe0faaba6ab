"""The navigation of the site, read from the lists of `docs/index.md` and of the decisions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from website.markdown import split_fences

LINK = re.compile(r"\[([^\]]+)\]\(([^)\s#]+\.md)\)")
DECISION = re.compile(r"^\| \[(\d+)\]\(([^)]+\.md)\) \| ([^|:]+)", re.MULTILINE)


class Entry(NamedTuple):
    """A page in the navigation."""

    title: str
    path: str
    """Below `docs`, such as `how-to/fastapi.md`."""


class Group(NamedTuple):
    """Entries and groups of entries below one title."""

    title: str
    children: tuple[Entry | Group, ...]


def read_navigation(docs: Path) -> tuple[Group, ...]:
    """Return a group for each `##` heading of the index, with a group for each `###` below it.

    A heading without links to pages has no group. The decisions follow in a group of their own.
    """
    text = drop_code((docs / "index.md").read_text(encoding="utf-8"))
    sections = [parse_section(part) for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]
    decisions = Group("Decisions", tuple(read_decisions(docs)))
    return (*(section for section in sections if section.children), decisions)


def parse_section(text: str) -> Group:
    """Parse what follows a `##`: its title, links, and groups below `###`."""
    own, *groups = re.split(r"^### ", text, flags=re.MULTILINE)
    title, _, body = own.partition("\n")
    return Group(title.strip(), (*parse_links(body), *map(parse_group, groups)))


def parse_group(text: str) -> Group:
    """Parse what follows a `###`: its title and links."""
    title, _, body = text.partition("\n")
    return Group(title.strip(), tuple(parse_links(body)))


def parse_links(text: str) -> Iterator[Entry]:
    """Yield the pages of the list items that begin with a link; other links are no navigation."""
    for item in re.findall(r"^- (\[.*(?:\n  .*)*)", text, re.MULTILINE):
        for title, path in LINK.findall(" ".join(item.split())):
            if not path.startswith("..") and path != "decisions/README.md":
                yield Entry(title[0].upper() + title[1:], path)


def read_decisions(docs: Path) -> Iterator[Entry]:
    """Yield the list of decisions and each record in it."""
    yield Entry("All decisions", "decisions/README.md")
    text = (docs / "decisions" / "README.md").read_text(encoding="utf-8")
    for number, path, title in DECISION.findall(text):
        yield Entry(f"{number} {title.strip()}", f"decisions/{path}")


def drop_code(text: str) -> str:
    """Return a text without its fenced blocks."""
    return "\n".join(part for part, is_code in split_fences(text) if not is_code)


def list_entries(groups: tuple[Entry | Group, ...]) -> Iterator[Entry]:
    """Yield the entries of groups in their order."""
    for one in groups:
        if isinstance(one, Group):
            yield from list_entries(one.children)
        else:
            yield one
