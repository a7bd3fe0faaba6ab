"""A small run of chaos, with real workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.chaos.fault_plan import Size
from benchmarks.chaos.report import describe_violations, show
from benchmarks.chaos.run import run_chaos


@pytest.mark.slow
async def test_killed_and_paused_workers_on_sqlite_lose_nothing(tmp_path: Path) -> None:
    size = Size(jobs=300, kills=3, pauses=1, workers=2, ttl=1.0, seconds=4.0)
    run = await run_chaos("sqlite", size, seed=1, folder=str(tmp_path))
    outcome = run.reconciliation
    assert outcome.violations == {}, describe_violations(run)
    assert outcome.acknowledged == 300
    assert outcome.completed + outcome.failed + outcome.cancelled == 300
    assert outcome.runs >= 290  # a few are cancelled before they run
    assert {kind: one.count for kind, one in outcome.faults.items()} == {"kill": 3, "pause": 1}
    assert "300 jobs, 2 workers" in show(run)


@pytest.mark.slow
async def test_killed_and_paused_workers_on_sqlite_run_each_join_once(tmp_path: Path) -> None:
    size = Size(flows=10, kills=3, pauses=1, workers=2, ttl=1.0, seconds=3.0)
    run = await run_chaos("sqlite", size, seed=1, folder=str(tmp_path))
    assert run.violations == {}, describe_violations(run)
    assert run.flows is not None
    assert (run.flows.flows, run.flows.joins) == (10, 50)
    assert run.flows.joins_run + run.flows.joins_cancelled == 50
    assert run.flows.results_compared
    assert "joins missing" in show(run)
