"""What programs read: each page as Markdown beside its HTML, `llms.txt` and `llms-full.txt`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from website.markdown import find_summary, find_title
from website.navigation import Group, list_entries

ATTRIBUTES = re.compile(r" ?\{ [#.][^}]*\}")
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
OPTIONAL = ("Decisions",)
"""Groups that a reader with little room may leave out; `llms-full.txt` does."""


def make_twins(pages: Mapping[str, str]) -> dict[str, str]:
    """Return the pages as plain Markdown: without front matter and attributes of headings."""
    return {path: make_plain(text) for path, text in pages.items()}


def make_plain(text: str) -> str:
    """Return one page as plain Markdown."""
    return ATTRIBUTES.sub("", FRONT_MATTER.sub("", text))


def make_llms(
    summary: str, groups: tuple[Group, ...], twins: Mapping[str, str], site_url: str
) -> str:
    """Return `llms.txt`: what the project is, and each page with its first sentence."""
    parts = [f"# nimburion\n\n> {summary}"]
    parts.append(f"All pages in one file: {site_url}llms-full.txt")
    for group in groups:
        title = f"Optional: {group.title}" if group.title in OPTIONAL else group.title
        lines = [describe_page(entry.path, twins, site_url) for entry in list_entries((group,))]
        parts.append(f"## {title}\n\n" + "\n".join(dict.fromkeys(lines)))
    return "\n\n".join(parts) + "\n"


def describe_page(path: str, twins: Mapping[str, str], site_url: str) -> str:
    """Return a list item that links to a page."""
    summary = find_summary(twins[path])
    return f"- [{find_title(twins[path])}]({site_url}{path})" + (f": {summary}" if summary else "")


def make_llms_full(groups: tuple[Group, ...], twins: Mapping[str, str], site_url: str) -> str:
    """Return all pages of the navigation in one text, without the optional ones."""
    wanted = tuple(group for group in groups if group.title not in OPTIONAL)
    paths = dict.fromkeys(["index.md", *(entry.path for entry in list_entries(wanted))])
    return "\n".join(f"<!-- {site_url}{path} -->\n\n{twins[path]}" for path in paths)


def write_machine_pages(
    target: Path, summary: str, groups: tuple[Group, ...], pages: Mapping[str, str], site_url: str
) -> None:
    """Write the Markdown of each page beside its HTML, and the two lists."""
    twins = make_twins(pages)
    for path, text in twins.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text(text, encoding="utf-8")
        name_twin(target / find_html(path), site_url + path)
    llms = make_llms(summary, groups, twins, site_url)
    (target / "llms.txt").write_text(llms, encoding="utf-8")
    full = make_llms_full(groups, twins, site_url)
    (target / "llms-full.txt").write_text(full, encoding="utf-8")


def find_html(path: str) -> str:
    """Return the HTML file of a page: that of `how-to/a.md` is `how-to/a/index.html`."""
    folder, _, name = path.removesuffix(".md").rpartition("/")
    parts = [folder] if name in {"index", "README"} else [folder, name]
    return "/".join(part for part in [*parts, "index.html"] if part)


def name_twin(html: Path, url: str) -> None:
    """Name the Markdown of a page in its HTML, where programs look for it."""
    text = html.read_text(encoding="utf-8")
    link = f'<link rel="alternate" type="text/markdown" href="{url}">'
    html.write_text(text.replace("</head>", f"{link}</head>", 1), encoding="utf-8")
