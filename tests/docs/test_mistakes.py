"""Each mistake of the page is made, and its message is compared with what the page says.

`test_examples.py` runs the blocks of the page and compares the output.
"""

from __future__ import annotations

from itertools import pairwise

from tests.docs.pages import read
from tests.house.tree import ROOT

PAGE = read(ROOT / "docs" / "how-to" / "common-mistakes.md")


def test_each_mistake_of_the_page_is_made_and_prints_its_message() -> None:
    compared = {
        before.heading
        for before, after in pairwise(PAGE.blocks)
        if after.is_output and (before.runs or before.is_command)
    }
    mistakes = set(PAGE.headings[1:])
    assert mistakes - compared == set()
    assert len(mistakes) >= 12
