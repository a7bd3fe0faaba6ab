"""The exit codes that the page about containers lists."""

from __future__ import annotations

import re

from tests.house.tree import ROOT

PAGE = ROOT / "docs/how-to/run-in-containers.md"


def read_documented_codes() -> set[int]:
    """Return the exit codes in the first column of the table."""
    text = PAGE.read_text(encoding="utf-8")
    return {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
