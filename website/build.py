"""Build the site: stage the pages, run the generator, write Markdown copies, check the result."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from website.checks import find_defects
from website.machine_pages import write_machine_pages
from website.markdown import adapt_page, make_link_rewriter
from website.navigation import Entry, Group, list_entries, read_navigation
from website.reference import list_modules, make_page

ROOT = Path(__file__).parents[1]
API_PAGE = "reference/api.md"
HOME = """---
hide:
  - navigation
  - toc
---

"""

NOT_SEARCHED = """---
search:
  exclude: true
---

"""
"""The front matter of a page that the search of the site leaves out."""


class BuildFailed(Exception):
    """The site was not built; the message lists why."""


class Project(NamedTuple):
    """What `pyproject.toml` says about the project."""

    summary: str
    repository: str
    site_url: str


def build_site(scratch: Path, target: Path, generate: Callable[[Path], None]) -> int:
    """Build the site into `target`; return the number of its pages.

    `generate` runs the generator on a configuration file. Raises `BuildFailed` when the result has
    broken links, loads from another host, or lacks a page.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.rmtree(target, ignore_errors=True)
    project = read_project()
    groups = add_reference(read_navigation(ROOT / "docs"))
    pages = {**read_pages(project.repository), **make_reference_pages()}
    write_source(scratch, pages)
    write_settings(scratch, project, groups)
    generate(scratch / "zensical.toml")
    shutil.move(scratch / "site", target)
    write_machine_pages(target, project.summary, groups, pages, project.site_url)
    if defects := [*find_unlisted(groups, pages), *find_defects(target)]:
        raise BuildFailed("\n".join(defects))
    return len(pages)


def run_zensical(program: Path, settings: Path) -> None:
    """Run the generator; a warning of its own is an error."""
    command = [str(program), "build", "--strict", "--config-file", str(settings)]
    finished = subprocess.run(command, text=True, capture_output=True, check=False)
    if finished.returncode or "warning" in (finished.stdout + finished.stderr).lower():
        raise BuildFailed(finished.stdout + finished.stderr)


def read_project() -> Project:
    """Read what the project says about itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    urls = project["urls"]
    return Project(project["description"], urls["Repository"], urls["Documentation"])


def read_pages(repository: str) -> dict[str, str]:
    """Return the pages of `docs` by their path, as the generator reads them."""
    docs = ROOT / "docs"
    files = {path.relative_to(ROOT).as_posix() for path in docs.rglob("*") if path.is_file()}
    pages = {}
    for path in sorted(docs.rglob("*.md")):
        rewrite = make_link_rewriter(path.relative_to(ROOT).as_posix(), repository, files)
        text = adapt_page(path.read_text(encoding="utf-8"), rewrite)
        pages[path.relative_to(docs).as_posix()] = text
    for name in filter(is_for_maintainers, pages):
        pages[name] = NOT_SEARCHED + pages[name]
    pages["index.md"] = HOME + make_buttons(pages["index.md"])
    pages[API_PAGE] += "\n" + list_reference()
    return pages


def is_for_maintainers(path: str) -> bool:
    """Return whether users have no use for a page: the search finds how-tos and reference instead.

    Records of decisions and contract cases use each word of the product many times. `names.md` has
    in a row what the pages of the modules have in sections.
    """
    return path.startswith("decisions/0") or path in {
        "reference/contract-cases.md",
        "reference/names.md",
        "reference/guide-map.md",
    }


def make_buttons(home: str) -> str:
    """Make buttons of the links that form the second paragraph of the home page."""
    head, links, rest = re.split(r"(?m)^(\[.*\))$", home, maxsplit=1)
    return f"{head}{'{ .md-button } '.join(links.split(' · '))}{{ .md-button }}{rest}"


def make_reference_pages() -> dict[str, str]:
    """Return a page for each public module."""
    return {reference_path(name): make_page(name) for name in list_modules()}


def reference_path(module: str) -> str:
    """Return the path of the page of a module."""
    return f"reference/python/{module}.md"


def list_reference() -> str:
    """Return the links from the list of names to the pages of the modules."""
    items = [f"- [`{name}`](python/{name}.md)" for name in list_modules()]
    return "## All signatures and docstrings\n\n" + "\n".join(items) + "\n"


def add_reference(groups: tuple[Group, ...]) -> tuple[Group, ...]:
    """Add the pages of the modules to the group of the reference."""
    modules = Group(
        "Python modules", tuple(Entry(one, reference_path(one)) for one in list_modules())
    )
    return tuple(
        Group(group.title, (*group.children, modules)) if group.title == "Reference" else group
        for group in groups
    )


def find_unlisted(groups: tuple[Group, ...], pages: dict[str, str]) -> list[str]:
    """Return the pages that the navigation does not name."""
    listed = {"index.md", *(entry.path for entry in list_entries(groups))}
    return [f"docs/{path}: no list of docs/index.md names it" for path in pages.keys() - listed]


def write_source(scratch: Path, pages: dict[str, str]) -> None:
    """Write the pages and the files beside them to where the generator reads them."""
    source = scratch / "source"
    ignore = shutil.ignore_patterns("*.md")
    shutil.copytree(ROOT / "docs", source, ignore=ignore)
    shutil.copytree(ROOT / "website" / "assets", source / "assets", dirs_exist_ok=True)
    for path, text in pages.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_text(text, encoding="utf-8")


def write_settings(scratch: Path, project: Project, groups: tuple[Group, ...]) -> None:
    """Write the configuration of the generator, with the navigation and the folders."""
    navigation = ", ".join(['{"Home" = "index.md"}', *map(to_toml, groups)])
    lines = [
        "[project]",
        f"nav = [{navigation}]",
        'docs_dir = "source"',
        'site_dir = "site"',
        f"site_url = {json.dumps(project.site_url)}",
    ]
    text = (ROOT / "website" / "zensical.toml").read_text(encoding="utf-8")
    text = text.replace("[project]", "\n".join(lines), 1)
    # A link, not `repo_url`: with that, each page asks the host of the repository for its stars.
    social = {"icon": "fontawesome/brands/github", "name": "Source code"}
    social["link"] = project.repository
    items = [f"{key} = {json.dumps(value)}" for key, value in social.items()]
    text += "\n".join(["", "[[project.extra.social]]", *items, ""])
    (scratch / "zensical.toml").write_text(text, encoding="utf-8")


def to_toml(one: Entry | Group) -> str:
    """Return an entry of the navigation as an inline table."""
    if isinstance(one, Entry):
        return f"{{{json.dumps(one.title)} = {json.dumps(one.path)}}}"
    return f"{{{json.dumps(one.title)} = [{', '.join(map(to_toml, one.children))}]}}"
