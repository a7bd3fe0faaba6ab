"""Changes that a page of `docs/` needs before the generator of the site reads it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator

FENCE = re.compile(r"^( *)(`{3,})(.*)$")
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
ITEM = re.compile(r"^( *)([-*]|\d+\.) ")
HTML_ATTRIBUTE = re.compile(r'(?:(?<=src=")|(?<=href="))([^"]+)(?=")')


def split_fences(text: str) -> Iterator[tuple[str, bool]]:
    """Yield the parts of a text, each with whether it is a fenced block, in their order."""
    part: list[str] = []
    fence = ""
    for line in text.splitlines():
        found = FENCE.match(line)
        if fence:
            part.append(line)
            if line.strip() == fence:
                yield "\n".join(part), True
                part, fence = [], ""
        elif found:
            if part:
                yield "\n".join(part), False
            part, fence = [line], found[2]
        else:
            part.append(line)
    if part:
        yield "\n".join(part), bool(fence)


def adapt_page(text: str, rewrite_link: Callable[[str], str]) -> str:
    """Return a page as the generator of the site reads it.

    Fences keep their language and get a title. Lists get the blank line and the indentation that
    Python-Markdown asks for. `rewrite_link` maps the target of each link and picture.
    """
    parts = [
        adapt_fence(part) if is_code else adapt_prose(part, rewrite_link)
        for part, is_code in split_fences(text)
    ]
    return "\n".join(parts) + "\n"


def adapt_fence(block: str) -> str:
    """Keep the language of a fence; name the file that it is, or say that it is output."""
    first, _, rest = block.partition("\n")
    found = FENCE.match(first)
    assert found is not None
    language, *words = found[3].split() or ["text"]
    files = [word.removeprefix("file=") for word in words if word.startswith("file=")]
    title = files[0] if files else "Output" if "output" in words else ""
    suffix = f' title="{title}"' if title else ""
    return f"{found[1]}{found[2]}{language}{suffix}\n{rest}"


def adapt_prose(text: str, rewrite_link: Callable[[str], str]) -> str:
    """Rewrite the links of a text, and write its lists the way Python-Markdown reads them."""
    lines: list[str] = []
    for line in text.split("\n"):
        item = ITEM.match(line)
        previous = lines[-1] if lines else ""
        if item and not item[1] and previous.strip() and not previous.startswith(("- ", " ", "1")):
            lines.append("")
        lines.append(rewrite_links(line, rewrite_link))
    return "\n".join(lines)


def rewrite_links(line: str, rewrite_link: Callable[[str], str]) -> str:
    """Rewrite the targets in one line, outside of code."""
    parts = re.split(r"(`[^`]*`(?!\]))", line)
    for number in range(0, len(parts), 2):
        parts[number] = LINK.sub(lambda found: rewrite_link(found[1]), parts[number])
        parts[number] = HTML_ATTRIBUTE.sub(lambda found: rewrite_link(found[1]), parts[number])
    return "".join(parts)


def make_link_rewriter(page: str, repository: str, tracked: set[str]) -> Callable[[str], str]:
    """Return a function that maps a link of a page to its target on the site.

    Args:
        page: the path of the page in the checkout, such as `docs/how-to/fastapi.md`.
        repository: the web page of the repository, for files that the site does not hold.
        tracked: the paths of the checkout that the site holds.
    """

    def rewrite(link: str) -> str:
        name, mark, anchor = link.partition("#")
        if not name or re.match(r"[a-z]+:", link):
            return link
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page), name))
        if target in tracked:
            return link
        kind = "blob" if posixpath.splitext(target)[1] or "/" not in target else "tree"
        return f"{repository}/{kind}/main/{target}{mark}{anchor}"

    return rewrite


def find_title(text: str) -> str:
    """Return the text of the first heading of a page, without markup."""
    heading = re.search(r"^# (.+?)(?: \{.*\})?$", text, re.MULTILINE)
    return re.sub(r"[`*]", "", heading[1]) if heading else ""


def find_summary(text: str) -> str:
    """Return the first sentence of the first paragraph of a page, without markup."""
    for part, is_code in split_fences(text):
        if is_code:
            continue
        for paragraph in re.split(r"\n\s*\n", part):
            plain = " ".join(paragraph.split())
            if plain and not plain.startswith(("#", "|", "-", "<", "!", "{", "```")):
                plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", plain)
                return re.split(r"(?<=[.:]) ", re.sub(r"[*]", "", plain))[0]
    return ""
