"""`python -m website.package_readme VERSION`: give the README links that work on a package index.

The README links to files of the repository. A package index shows it alone, so each such link must
name the repository, at the version of the package.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from website.build import ROOT, read_project
from website.markdown import rewrite_links, split_fences

PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")


def make_package_readme(text: str, repository: str, version: str) -> str:
    """Return a README whose relative links lead to the repository at a version."""
    parts = [
        part if is_code else rewrite_part(part, repository, version)
        for part, is_code in split_fences(text)
    ]
    return "\n".join(parts) + "\n"


def rewrite_part(text: str, repository: str, version: str) -> str:
    """Rewrite the links of a text without code blocks; pictures need the file itself."""
    pictures = set(PICTURE.findall(text))

    def rewrite(link: str) -> str:
        if re.match(r"[a-z]+:|#", link):
            return link
        kind = "raw" if link in pictures else "blob"
        return f"{repository}/{kind}/v{version}/{link}"

    return "\n".join(rewrite_links(line, rewrite) for line in text.split("\n"))


def main(version: str, path: Path) -> None:
    """Rewrite the README in place."""
    text = path.read_text(encoding="utf-8")
    path.write_text(make_package_readme(text, read_project().repository, version), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], ROOT / "README.md")
