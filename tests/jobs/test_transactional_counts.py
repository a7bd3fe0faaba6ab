"""Jobs that a caller's transaction enqueues are counted when it commits, never after a rollback."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest

from nimburion import job
from nimburion.backends import open_backend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.job import NewJob
from nimburion.core.metrics.counters import JobCounters
from nimburion.core.transactions import CallerConnection, EnqueueCount
from nimburion.jobs import Processor
from nimburion.jobs.statistics_writer import count_committed
from nimburion.jobs.worker.maintenance import Pruner
from nimburion.testing import FakeClock


@job(name="pay", queue="orders")
def pay(order: int) -> None:
    """A job of the tests."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/jobs.db"


@pytest.fixture
async def reader(url: str) -> AsyncIterator[Backend]:
    """Another process that reads the statistics."""
    async with Processor(open_backend(url)) as other:
        yield other.backend


def make_processor(url: str) -> Processor:
    processor = Processor(open_backend(url))
    processor.register(pay)
    return processor


async def read_enqueued(backend: Backend) -> int:
    now = await backend.now()
    rows = await backend.reads.list_statistics(now - 7200, now + 3600, 3600)
    return sum(row.counters.enqueued for row in rows)


async def order(processor: Processor, path: Path) -> None:
    """Store six orders that are committed and six that are rolled back."""
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        for number in range(12):
            await processor.enqueue(pay.job(number), connection=connection)
            connection.commit() if number % 2 else connection.rollback()


async def test_only_committed_jobs_are_counted(url: str, tmp_path: Path, reader: Backend) -> None:
    async with make_processor(url) as processor:
        await order(processor, tmp_path / "jobs.db")
        await processor.enqueue(pay.job(12))
    assert await read_enqueued(reader) == 7
    assert 'jobs_enqueued_total{queue="orders",name="pay"} 7' in processor.metrics.render()[0]


async def test_a_worker_counts_what_no_other_process_has_counted(tmp_path: Path) -> None:
    """The process that enqueued may have ended before its transaction committed."""
    clock = FakeClock()
    backend = SQLiteBackend(tmp_path / "jobs.db", clock=clock)
    processor = Processor(backend, clock=clock)
    counters = JobCounters()
    pruner = Pruner(backend, clock, Random(1), processor.settings, counters)
    async with processor:
        with closing(sqlite3.connect(tmp_path / "jobs.db", timeout=10)) as connection:
            await backend.producing.enqueue_in(
                CallerConnection(connection), [NewJob("a", "pay", "orders", b"{}")]
            )
            connection.commit()
        await pruner.tick()
        assert counters.get_lane("orders", "pay").enqueued == 0
        clock.advance(61.0)
        await pruner.tick()
        await pruner.tick()
        assert counters.get_lane("orders", "pay").enqueued == 1


async def test_more_counts_than_one_call_takes_are_all_counted() -> None:
    calls = [[EnqueueCount("orders", "pay", 1_000)], [EnqueueCount("orders", "pay", 7)], []]

    class Backlog:
        async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
            assert min_age == 60.0
            return calls.pop(0)

    counters = JobCounters()
    await count_committed(Backlog(), counters, min_age=60.0)  # type: ignore[arg-type]
    assert counters.get_lane("orders", "pay").enqueued == 1_007
