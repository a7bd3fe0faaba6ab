"""A plugin for long runs in several processes (`-p tests.many_processes`): it orders and reports.

A test that waits for a process, a server or a deadline leaves its core idle. Where several of them
run at the same time, both cores are idle; where one runs last, all other processes wait for it.
So this order spreads the long tests over the first three quarters of the run, and the modules over
the whole of it. The cases of the contract are short and many: only these run at the end.

The order follows from the names of the tests, so each process has the same one.
"""

from __future__ import annotations

import zlib
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from _pytest.runner import runtestprotocol

NEIGHBOURS = 8
"""How many tests of a module stay together: a few of them share what pytest sets up for it."""
LONG_UNTIL, OTHERS_UNTIL = 0.75, 0.85
"""The part of the run in which long tests start, and tests that are not of the contract."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests as the docstring of this module says."""
    seen: Counter[Path] = Counter()
    positions = {}
    for item in items:
        positions[item] = find_position(item, seen[item.path])
        seen[item.path] += 1
    items.sort(key=positions.__getitem__)


def find_position(item: pytest.Item, number: int) -> float:
    """Return where in the run a test stands, from 0 to 1; `number` counts those of its module."""
    if "slow" in item.keywords:
        return LONG_UNTIL * draw(item.nodeid)
    piece = 0 if shares_fixtures(item.path) else number // NEIGHBOURS
    until = 1.0 if item.path.parent.name == "contract" else OTHERS_UNTIL
    return until * draw(f"{item.path.relative_to(item.config.rootpath)} {piece}")


def draw(name: str) -> float:
    """Return a number from 0 to 1 that only depends on the name."""
    return zlib.crc32(name.encode()) / 2**32


@cache
def shares_fixtures(path: Path) -> bool:
    """Tell whether a module has fixtures that live as long as it runs: it stays together."""
    return 'scope="module"' in path.read_text(encoding="utf-8")


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool:
    """Run a test and report how it ended.

    That its fixtures were set up and torn down is only reported when it failed: to send, receive
    and count these reports takes a third of what pytest needs for a test.
    """
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True
