"""Checks of the built site: every link leads somewhere, and no page loads from another host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

LOADED = {
    "script": "src",
    "img": "src",
    "source": "src",
    "iframe": "src",
    "link": "href",
}
"""What a browser loads with a page. A link in the text is loaded by a click only."""
NOT_LOADED = {"canonical", "alternate", "next", "prev", "edit"}
CSS_HOST = re.compile(r"url\(\s*['\"]?(?:https?:)?//")


class Page(NamedTuple):
    """What the checks need of an HTML file."""

    links: frozenset[str]
    loads: frozenset[str]
    anchors: frozenset[str]


class PageParser(HTMLParser):
    """Collects links, loaded files and anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.links = set[str]()
        self.loads = set[str]()
        self.anchors = set[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what one tag names."""
        values = {name: value or "" for name, value in attrs}
        self.anchors.update(values[name] for name in ("id", "name") if name in values)
        if tag == "a" and "href" in values:
            self.links.add(values["href"])
            if values.get("data-md-component") == "source":  # the theme asks this host for facts
                self.loads.add(values["href"])
        kinds = set(values.get("rel", "").split())
        if tag in LOADED and values.get(LOADED[tag]) and not kinds & NOT_LOADED:
            self.loads.add(values[LOADED[tag]])


def read_page(path: Path) -> Page:
    """Parse an HTML file."""
    parser = PageParser()
    parser.feed(path.read_text(encoding="utf-8"))
    return Page(frozenset(parser.links), frozenset(parser.loads), frozenset(parser.anchors))


def find_defects(site: Path) -> list[str]:
    """Return the broken links, the loads from other hosts, and the pages without a twin."""
    pages = {path: read_page(path) for path in sorted(site.rglob("*.html"))}
    defects = [
        f"{path.relative_to(site)}: {defect}"
        for path, page in pages.items()
        if path.name != "404.html"  # its links are absolute, for every depth
        for defect in find_page_defects(site, path, page, pages)
    ]
    styles = [path for path in site.rglob("*.css") if CSS_HOST.search(path.read_text("utf-8"))]
    return defects + [f"{path.relative_to(site)}: loads from another host" for path in styles]


def find_page_defects(site: Path, path: Path, page: Page, pages: dict[Path, Page]) -> Iterator[str]:
    """Yield what is wrong with one page."""
    for link in sorted(page.loads):
        if urlsplit(link).netloc:
            yield f"loads {link} from another host"
        elif not link.startswith("data:") and not resolve(site, path, link).exists():
            yield f"loads {link}, which does not exist"
    for link in sorted(page.links):
        if urlsplit(link).scheme or urlsplit(link).netloc:
            continue
        target = resolve(site, path, link)
        anchor = unquote(urlsplit(link).fragment)
        if not target.exists():
            yield f"links to {link}, which does not exist"
        elif anchor and target in pages and anchor not in pages[target].anchors:
            yield f"links to {link}, but the page has no such heading"


def resolve(site: Path, path: Path, link: str) -> Path:
    """Return the file that a link of a page leads to."""
    name = unquote(urlsplit(link).path)
    target = (site / name.lstrip("/") if name.startswith("/") else path.parent / name).resolve()
    if not name:
        return path
    return target / "index.html" if target.is_dir() else target
