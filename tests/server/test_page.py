"""docs/reference/http-api.md lists every operation and every kind of problem, and no other."""

from __future__ import annotations

import re

from nimburion.server.api.names import PageQuery
from nimburion.server.api.schedules import ScheduleListQuery
from nimburion.server.routes import OPERATIONS
from tests.house.tree import PACKAGE, ROOT

PAGE = (ROOT / "docs" / "reference" / "http-api.md").read_text(encoding="utf-8")
SOURCE = "\n".join(path.read_text() for path in sorted((PACKAGE / "server").rglob("*.py")))


def test_every_operation_is_on_the_page_with_its_right() -> None:
    documented = re.findall(r"^\| `(\w+) (/\S+)` \| `(\w+)` \|", PAGE, re.MULTILINE)
    known = [(operation.method, operation.path, operation.right) for operation in OPERATIONS]
    assert documented == known


def test_every_kind_of_problem_is_on_the_page_with_its_status() -> None:
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", PAGE, re.MULTILINE)
    documented = {
        (status, code) for status, codes in rows for code in re.findall(r"`(\S+)`", codes)
    }
    raised = re.findall(r"Problem\(\s*(\d{3}),\s*\"([a-z-]+)\"", SOURCE)
    mapped = re.findall(r"\(\w+(?:\.\w+)?, (\d{3}), \"([a-z-]+)\"\)", SOURCE)
    answered = re.findall(r"(\d{3}): \(\"([a-z-]+)\",", SOURCE)
    assert documented == {*raised, *mapped, *answered}


def test_the_sizes_of_pages_are_on_the_page() -> None:
    assert "(1 to 1000, default 100; of schedules 1 to 100, default 50)" in PAGE
    for kind, text in ((PageQuery, "100"), (ScheduleListQuery, "50")):
        assert str(kind().limit) == text
