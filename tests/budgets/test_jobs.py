"""A plain job costs no more than budgets.toml says. The counts need no clock.

A count may exceed its budget by 3 %. A commit that makes a job more expensive must therefore raise
a number of the table, where a reviewer sees it. A commit that makes it much cheaper must lower one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.servers.server import Server

Counts = dict[str, dict[str, float]]
"""The counts or budgets of each scenario, by name."""

BUDGETS: dict[str, Counts] = tomllib.loads(
    (Path(__file__).parent / "budgets.toml").read_text(encoding="utf-8")
)
TOLERANCE = 1.03
SLACK = 1.2
"""A budget of calls that exceeds the count by more would not notice the next call. The counts of
the server depend on time, as the number of exchanges does: their budgets are only upper bounds."""
OTHER_PYTHON = sys.version_info[:2] != (3, 11)

pytestmark = pytest.mark.timeout(300)  # counting takes 10 s of CPU time


FEW_JOBS, MANY_JOBS = 300, 1_000
"""The jobs of the shorter run; many where a server decides when its replies come."""


def count(url: str, scenarios: Iterable[str], *, jobs: int = MANY_JOBS, code: str = "") -> Counts:
    """Return the counts of these scenarios; `code` runs first in the process."""
    start = f"{code}\nfrom tests.budgets.counts import main; main()"
    command = [sys.executable, "-c", start, url, *scenarios, "--jobs", str(jobs)]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr
    counts: Counts = json.loads(output.stdout)
    return counts


def find_violations(counts: Counts, budgets: Counts) -> Iterator[str]:
    """Yield what costs more than its budget, and budgets that are too large to notice anything."""
    for scenario, each in budgets.items():
        for name, budget in each.items():
            found = counts[scenario].get(name, 0.0)
            if found > budget * TOLERANCE:
                yield f"{scenario}: {name} is {found:.2f} a job, over the budget of {budget}"
            elif name.endswith("calls") and budget > max(10, found * SLACK) and not OTHER_PYTHON:
                yield f"{scenario}: {name} is {found:.2f} a job; lower its budget of {budget}"


@pytest.mark.parametrize(("backend", "url"), [("memory", "memory://"), ("sqlite", "sqlite")])
def test_a_job_without_a_server_stays_within_its_budgets(backend: str, url: str) -> None:
    counts = count(url, BUDGETS[backend], jobs=FEW_JOBS)
    assert list(find_violations(counts, BUDGETS[backend])) == []


@pytest.mark.slow
@pytest.mark.parametrize("redis_binary", ["valkey"], indirect=True)
def test_a_job_on_redis_stays_within_its_budgets(redis_binary: Binary) -> None:
    with Server(redis_binary) as server:
        assert list(find_violations(count(server.url, BUDGETS["redis"]), BUDGETS["redis"])) == []


@pytest.mark.slow
@pytest.mark.parametrize("postgres_binary", ["postgres"], indirect=True)
def test_a_job_on_postgresql_stays_within_its_budgets(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary, "autovacuum=off") as server:
        assert (
            list(find_violations(count(server.url, BUDGETS["postgres"]), BUDGETS["postgres"])) == []
        )


PLANTED = """
from nimburion.jobs.worker.exchange.completer import Completer
settle = Completer.settle
def settle_with_another_call(self, settlement): return settle(self, settlement)
Completer.settle = settle_with_another_call
settle_with_another_call.__code__ = settle_with_another_call.__code__.replace(
    co_filename=settle.__code__.co_filename
)
"""


def test_one_more_call_for_each_job_is_over_the_budget() -> None:
    counts = count("memory://", ["drain"], jobs=FEW_JOBS, code=PLANTED)
    budgets = {"drain": BUDGETS["memory"]["drain"]}
    assert any("engine_calls" in each for each in find_violations(counts, budgets))


def test_a_budget_that_is_too_large_is_found() -> None:
    budgets = {"drain": {"calls": 100.0, "exchanges": 0.1}}
    counts = {"drain": {"calls": 50.0, "exchanges": 0.01}}
    assert list(find_violations(counts, budgets)) == [
        "drain: calls is 50.00 a job; lower its budget of 100.0"
    ]
