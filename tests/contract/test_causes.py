"""The page of causes is made from the suite, and is current."""

from __future__ import annotations

from nimburion.core.diagnosis.explanations import CauseKind
from nimburion.testing.contract.causes import make_page
from nimburion.testing.contract.reads.explaining import SITUATIONS
from tests.house.tree import ROOT

PAGE = ROOT / "docs/reference/why.md"
MAKE = "python -m nimburion.testing.contract.causes docs/reference/why.md"


async def test_the_page_is_current() -> None:
    current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    assert current == await make_page(), f"make it anew: {MAKE}"


def test_every_kind_of_cause_has_a_case() -> None:
    """`key_held` never comes first: a case of its own tests it."""
    assert {kind for kind, _ in SITUATIONS} == set(CauseKind) - {CauseKind.KEY_HELD}
