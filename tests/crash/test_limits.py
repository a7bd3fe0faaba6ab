"""Limits over eight worker processes, some of which are killed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.rates import find_excess
from nimburion.core.job import State
from nimburion.jobs import Processor
from nimburion.testing.contract.harness import list_uses
from tests.crash.limited_worker import (
    AT_ONCE,
    BURST,
    LOG,
    OF_A_CUSTOMER,
    PER_SECOND,
    Call,
    make_processor,
)
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.wide, pytest.mark.timeout(180)]

WORKERS, JOBS, CUSTOMERS, REGIONS = 8, 5_000, 60, 2
DEADLY = (1_000, 2_500, 4_000)
"""The jobs that kill their worker."""


async def test_three_limits_hold_while_workers_are_killed(tmp_path: Path) -> None:
    """One limit for all jobs, one for each customer, and a rate for each region."""
    url, log = f"sqlite:///{tmp_path}/jobs.db", tmp_path / "log"
    async with make_processor(url) as client:
        await client.enqueue_many(
            Call(customer=f"c{n % CUSTOMERS}", region=f"r{n % REGIONS}", deadly=n in DEADLY)
            for n in range(JOBS)
        )

        async def is_done() -> bool:
            return (await client.backend.reads.count_jobs(budget=None))[State.COMPLETED] == JOBS

        with run_workers(url, log) as workers:
            await wait_until(is_done, "all jobs are completed", seconds=120)
            assert sum(worker.poll() is not None for worker in workers) == len(DEADLY)
        assert await list_uses(client.backend) == []
        starts = await read_starts(client)
    in_total, of_a_customer = count_overlaps(log)
    assert 1 < in_total <= AT_ONCE
    assert of_a_customer == OF_A_CUSTOMER
    assert {region: len(times) for region, times in starts.items()} == {"r0": 2_500, "r1": 2_500}
    for times in starts.values():
        assert find_excess(times, PER_SECOND) <= BURST + 1e-3


@contextmanager
def run_workers(url: str, log: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run the worker processes, and kill those that are left."""
    command = [sys.executable, "-m", "tests.crash.limited_worker", url]
    workers = [subprocess.Popen(command, env={**os.environ, LOG: str(log)}) for _ in range(WORKERS)]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


async def read_starts(client: Processor) -> dict[str, list[float]]:
    """Return when the jobs of each region were reserved."""
    starts: dict[str, list[float]] = defaultdict(list)
    after: str | None = None
    while True:
        page = await client.backend.reads.list_jobs(limit=1_000, after=after)
        for record in page.jobs:
            assert record.started_at is not None
            starts[record.options.limit_keys["call:region"]].append(record.started_at)
        after = page.next
        if after is None:
            return starts


def count_overlaps(log: Path) -> tuple[int, int]:
    """Return the most handlers that ran at once: in total, and for one customer."""
    running: dict[str, dict[str, str]] = defaultdict(dict)
    most = most_of_one = 0
    for line in log.read_text().splitlines():
        match line.split():
            case [pid, "begin", job_id, customer]:
                running[pid][job_id] = customer
            case [pid, "end", job_id, _]:
                del running[pid][job_id]
            case [pid, "killed"]:
                del running[pid]
        counts = Counter(customer for jobs in running.values() for customer in jobs.values())
        most = max(most, counts.total())
        most_of_one = max(most_of_one, *counts.values(), 0)
    return most, most_of_one
