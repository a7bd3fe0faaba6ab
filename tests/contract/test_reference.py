"""The page of contract cases is made from the suite, and is current."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.testing.contract.reference import contract_page, main, themes

PAGE = Path(__file__).parents[2] / "docs/reference/contract-cases.md"
MAKE = "python -m nimburion.testing.contract.reference docs/reference/contract-cases.md"


def test_the_page_is_current() -> None:
    current = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    assert current == contract_page(), f"make it anew: {MAKE}"


def test_the_suite_has_no_case_twice() -> None:
    """A name in two groups would silently run once."""
    names = [name for _, cases in themes() for name, _, _ in cases]
    assert len(names) == len(set(names)) > 300


@pytest.mark.parametrize("arguments", [[], ["--help"], ["page.md", "other.md"]])
def test_the_generator_writes_only_to_a_path(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="usage"):
        main(arguments)
    assert list(tmp_path.iterdir()) == []
