"""A process loads no more modules than modules.toml says: they cost memory and the time of a start.

The number of all modules differs between versions of Python, so its budget applies to Python 3.11
only. The budget of our own modules applies to each version.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

Counts = dict[str, int]
"""The modules that a process loads: `all`, and those of `nimburion`."""

BUDGETS: dict[str, Counts] = tomllib.loads(
    (Path(__file__).parent / "modules.toml").read_text(encoding="utf-8")
)
SLACK = 5
"""A budget that exceeds the count by more would not notice the next module."""
OTHER_PYTHON = sys.version_info[:2] != (3, 11)

LIST_LOADED = """
import sys

loaded_before = set(sys.modules)
{code}
print()
print(*(sys.modules.keys() - loaded_before))
"""
WORKER = """
import asyncio

from nimburion.jobs import Job, Processor

class Mail(Job):
    async def process(self, context): pass

processor = Processor("sqlite:///jobs.db", import_path="app:processor")  # may have child processes
processor.register(Mail)

async def main():
    async with processor:
        await processor.enqueue(Mail())
        await processor.run(until_empty=True)

asyncio.run(main())
"""
COMMAND = """
from nimburion.cli import main

try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code
"""
CODE = {
    "import_jobs": "import nimburion.jobs",
    "worker": WORKER,
    "jobs_list": COMMAND.format(arguments=["jobs", "list", "--backend", "sqlite:///jobs.db"]),
    "version": COMMAND.format(arguments=["--version"]),
}


def run(code: str, folder: Path) -> str:
    """Run code in a new process, in a folder; return what it prints."""
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def count(code: str, folder: Path) -> Counts:
    """Return how many modules a new process loads that runs the code."""
    loaded = run(LIST_LOADED.format(code=code), folder).splitlines()[-1].split()
    own = [name for name in loaded if name.partition(".")[0] == "nimburion"]
    return {"all": len(loaded), "nimburion": len(own)}


def find_violations(counts: Counts, budgets: Counts) -> Iterator[str]:
    """Yield counts over their budgets, and budgets that are too large to notice anything."""
    for name, budget in budgets.items():
        if name == "all" and OTHER_PYTHON:
            continue
        if counts[name] > budget:
            yield f"{name}: {counts[name]} modules, over the budget of {budget}"
        elif counts[name] < budget - SLACK:
            yield f"{name}: {counts[name]} modules; lower the budget of {budget}"


@pytest.mark.parametrize("process", CODE)
def test_a_process_loads_no_more_modules_than_its_budget(process: str, tmp_path: Path) -> None:
    if process == "jobs_list":
        run(WORKER, tmp_path)  # makes the file
    counts = count(CODE[process], tmp_path)
    assert list(find_violations(counts, BUDGETS[process])) == []


def test_one_more_import_is_over_the_budget(tmp_path: Path) -> None:
    counts = count(f"import nimburion.core.audit\n{CODE['version']}", tmp_path)
    assert counts["nimburion"] > BUDGETS["version"]["nimburion"]
    assert any("nimburion" in each for each in find_violations(counts, BUDGETS["version"]))


def test_a_budget_that_is_too_large_is_found() -> None:
    assert list(find_violations({"nimburion": 40}, {"nimburion": 60})) == [
        "nimburion: 40 modules; lower the budget of 60"
    ]
