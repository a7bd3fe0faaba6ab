"""The site of the documentation: pages, navigation, reference and checks, but no generator."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.segment import Segment
from rich.style import Style

from tests.docs.test_public_modules import PUBLIC
from tests.house.tree import ROOT
from website.build import add_reference, find_unlisted, make_reference_pages, read_pages
from website.checks import find_defects
from website.machine_pages import find_html, make_llms, make_plain, name_twin
from website.markdown import adapt_page, find_summary, find_title, make_link_rewriter
from website.navigation import list_entries, read_navigation
from website.package_readme import make_package_readme
from website.reference import format_docstring, list_modules, make_page
from website.terminal_picture import Frame, draw_picture

DOCS = ROOT / "docs"
REPOSITORY = "https://example.com/code"


def test_each_page_is_in_the_navigation() -> None:
    pages = {path.relative_to(DOCS).as_posix(): "" for path in DOCS.rglob("*.md")}
    assert find_unlisted(read_navigation(DOCS), pages) == []


def test_a_page_outside_the_navigation_is_seen() -> None:
    assert find_unlisted((), {"index.md": "", "new.md": ""}) == [
        "docs/new.md: no list of docs/index.md names it"
    ]


def test_each_page_has_a_title_and_a_summary() -> None:
    pages = {path: path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md")}
    assert [path for path, text in pages.items() if not find_title(text)] == []
    assert [path for path, text in pages.items() if not find_summary(text)] == []


def test_the_numbers_of_the_home_page_are_those_of_the_readme() -> None:
    rows = re.findall(r"^\| (?:run|enqueue).*\|$", (DOCS / "index.md").read_text(), re.MULTILINE)
    assert rows
    assert set(rows) <= set((ROOT / "README.md").read_text(encoding="utf-8").splitlines())


def test_the_reference_has_a_page_for_each_public_module() -> None:
    assert {name for name in PUBLIC if name != "nimburion.jobs"} <= set(list_modules())


def test_a_page_of_the_reference_shows_signatures_and_docstrings() -> None:
    page = make_page("nimburion")
    assert "### `Processor.enqueue` { #Processor.enqueue }\n\n```python\nasync def enqueue(" in page
    assert "- `name: str`" in page
    assert "def job(" in page
    assert "- `unique_key: str | None`: At most one" in page  # inherited by a TypedDict
    assert "## `JobNotFound` { #JobNotFound }" in make_page("nimburion.errors")
    assert "._" not in re.sub(r"```.*?```", "", page, flags=re.DOTALL)


def test_a_session_in_a_docstring_is_fenced_and_sections_become_lists() -> None:
    text = "Do it.\n\n>>> do()\n1\n\nRaises:\n"
    text += "    ValueError: it is wrong,\n        very.\n    KeyError: no."
    assert format_docstring(text) == (
        "Do it.\n\n```pycon\n>>> do()\n1\n```\n\n"
        "**Raises**\n\n- `ValueError`: it is wrong, very.\n- `KeyError`: no."
    )


def test_a_page_is_adapted_to_the_generator() -> None:
    rewrite = make_link_rewriter("docs/a/b.md", REPOSITORY, {"docs/a/c.md"})
    text = (
        "See [c](c.md#x), [code](../../src/d.py), [folder](../../src/e/) and `[no](link.md)`:\n"
        "- one\n- two\n\n```python file=f.py\n- [x](y.md)\n```\n```text output\n3\n```\n"
    )
    assert adapt_page(text, rewrite) == (
        f"See [c](c.md#x), [code]({REPOSITORY}/blob/main/src/d.py), "
        f"[folder]({REPOSITORY}/tree/main/src/e) and `[no](link.md)`:\n\n"
        '- one\n- two\n\n```python title="f.py"\n- [x](y.md)\n```\n```text title="Output"\n3\n```\n'
    )


def test_the_list_for_programs_names_each_page_of_the_navigation() -> None:
    groups = add_reference(read_navigation(DOCS))
    pages = {**read_pages(REPOSITORY), **make_reference_pages()}
    twins = {path: make_plain(text) for path, text in pages.items()}
    text = make_llms("What it is.", groups, twins, "https://example.com/")
    missing = [
        one for one in list_entries(groups) if f"(https://example.com/{one.path})" not in text
    ]
    assert missing == []
    assert not any("{ " in line for line in twins["index.md"].splitlines()[:6])


@pytest.mark.parametrize(
    ("html", "defect"),
    [
        ('<a href="b/">', "links to b/, which does not exist"),
        ('<a href="#x">', "links to #x, but the page has no such heading"),
        ('<script src="https://example.com/x.js">', "loads https://example.com/x.js from another"),
        (
            '<a data-md-component="source" href="https://example.com/">',
            "loads https://example.com/",
        ),
        ('<img src="x.png">', "loads x.png, which does not exist"),
        ('<a href="https://example.com/">', ""),
        ('<h2 id="x"></h2><a href="#x"><a href="index.html#x">', ""),
    ],
)
def test_a_defect_of_the_built_site_is_seen(html: str, defect: str, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(html)
    found = find_defects(tmp_path)
    assert (defect in found[0]) if defect else found == []


def test_a_style_that_loads_a_font_is_seen(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face { src: url(//example.com/f.woff2) }")
    assert find_defects(tmp_path) == ["a.css: loads from another host"]


def test_the_readme_of_the_package_links_to_its_version() -> None:
    text = (
        "![a](docs/a.svg) [b](docs/b.md#c) [d](https://example.com/) `[e](f)`\n```\n[g](h)\n```\n"
    )
    base = "https://example.com/code"
    assert make_package_readme(text, base, "1.2.0") == (
        f"![a]({base}/raw/v1.2.0/docs/a.svg) [b]({base}/blob/v1.2.0/docs/b.md#c) "
        "[d](https://example.com/) `[e](f)`\n```\n[g](h)\n```\n"
    )


def test_the_picture_of_the_demo_is_one_svg_that_loads_nothing() -> None:
    lines = [[Segment("a <b>", Style(color="red", bold=True)), Segment("   "), Segment("c")]]
    picture = draw_picture([Frame(0.0, lines), Frame(1.0, lines)], "two & two", "nimburion demo")
    root = ET.fromstring(picture)
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts == ["nimburion demo", "a <b>", "c", "a <b>", "c"]
    assert "url(" not in picture
    assert picture.count('class="frame last"') == 1


def test_the_markdown_of_a_page_is_named_in_its_html(tmp_path: Path) -> None:
    html = tmp_path / find_html("how-to/a.md")
    html.parent.mkdir(parents=True)
    html.write_text("<head></head>")
    name_twin(html, "https://example.com/how-to/a.md")
    link = '<link rel="alternate" type="text/markdown" href="https://example.com/how-to/a.md">'
    assert html.read_text() == f"<head>{link}</head>"
    assert find_html("index.md") == "index.html"
    assert find_html("decisions/README.md") == "decisions/index.html"


def test_the_search_leaves_out_what_only_maintainers_need() -> None:
    """Else it finds contract cases and decisions before how-tos."""
    pages = read_pages(REPOSITORY)
    hidden = {path for path, text in pages.items() if "search:\n  exclude: true" in text}
    assert "reference/contract-cases.md" in hidden
    assert {path for path in pages if path.startswith("decisions/0")} <= hidden
    assert not any(path.startswith(("how-to/", "tutorial/", "explanation/")) for path in hidden)
    assert not hidden & {"decisions/README.md", "reference/api.md", "reference/cli.md"}


def test_the_home_page_has_three_reading_orders_before_the_lists() -> None:
    home = (DOCS / "index.md").read_text(encoding="utf-8")
    start = home.partition("## Where to start")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (build|operate|maintain) .*$", start, re.MULTILINE)
    assert rows == ["build", "operate", "maintain"]
    first = home.partition("### For maintainers")[0].partition("## Where to start")[0]
    assert "decisions/" not in first
    assert "Go guide" not in home
