"""One enqueue and one job pass through no more functions and files than paths.toml says."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from nimburion.core.fairness import to_weight_units
from tests.budgets.paths import PathRecorder
from tests.house.tree import ROOT

Counts = dict[str, dict[str, int]]
"""By path: the number of functions and files."""

BUDGETS: Counts = tomllib.loads((Path(__file__).parent / "paths.toml").read_text(encoding="utf-8"))
SLACK = 5
"""A budget that exceeds the count by more would not notice the next function."""


def find_violations(counts: Counts, budgets: Counts) -> Iterator[str]:
    """Yield counts over their budgets, and budgets that are too large to notice anything."""
    for path, budget in budgets.items():
        for name, most in budget.items():
            count = counts[path][name]
            if count > most:
                yield f"{path}: {count} {name}, over the budget of {most}"
            elif count < most - SLACK:
                yield f"{path}: {count} {name}; lower the budget of {most}"


@pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="comprehensions are functions on Python 3.11 only"
)
def test_the_paths_pass_through_no_more_functions_than_their_budget() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.budgets.paths"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert list(find_violations(json.loads(result.stdout), BUDGETS)) == []


def test_a_count_over_its_budget_and_a_budget_that_is_too_large_are_found() -> None:
    counts = {"enqueue": {"functions": 50, "files": 10}}
    assert list(find_violations(counts, {"enqueue": {"functions": 49, "files": 20}})) == [
        "enqueue: 50 functions, over the budget of 49",
        "enqueue: 10 files; lower the budget of 20",
    ]


async def test_only_functions_of_nimburion_are_recorded_and_each_once() -> None:
    recorder = PathRecorder()
    before = sys.getprofile()
    sys.setprofile(recorder.note)
    try:
        async with recorder.record():
            to_weight_units(json.loads("1.5"))
            to_weight_units(2.0)
    finally:
        sys.setprofile(before)
    assert recorder.count() == {"functions": 1, "files": 1}
    assert recorder.list_names() == ["core/fairness.py: to_weight_units"]
