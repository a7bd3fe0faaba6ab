"""Counts are exact, and do not count what was counted before."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob, State
from nimburion.core.maintenance import Retention
from nimburion.core.queries import JobFilter
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import delete
from tests.servers.server_kinds import RunningPostgres

QUEUES = ("one", "two")
LATER = 100.0
CANCELLED = JobFilter(states=frozenset({State.CANCELLED}))


class FinishedJobs:
    """Cancelled jobs, and how they are counted."""

    def __init__(self, server: RunningPostgres) -> None:
        self.clock = FakeClock()
        self.backend = PostgresBackend(server.url, clock=self.clock)
        self._server = server
        self._made = 0

    def fetch(self, text: str) -> int:
        ((number,),) = self._server.ask(text, database=self._server.database)
        return int(number or 0)

    async def finish(self, count: int) -> None:
        """Have so many more that ended, a second apart."""
        for n in range(self._made, self._made + count):
            self.clock.advance(1.0)
            await self.backend.producing.enqueue([NewJob(str(n), "n", QUEUES[n % 2], b"{}")])
            await self.backend.producing.cancel(str(n))
        self._made += count

    def count_finished(self) -> int:
        self.clock.advance(LATER)
        return self.fetch(
            f"SELECT nimburion.count_new_finished_1({int(self.clock.now() * 1e6)}, 1)"
        )

    @property
    def read_counted(self) -> int:
        return self.fetch("SELECT sum(number) FROM nimburion.finished_count")

    async def count_unpruned(self) -> int:
        """How many there are, if all ways to count agree."""
        kept = self.fetch("SELECT count(*) FROM nimburion.job_record_finished")
        by_queue = [
            (await self.backend.reads.count_jobs(queue))[State.CANCELLED] for queue in QUEUES
        ]
        assert (
            (await self.backend.reads.count_jobs(budget=None))[State.CANCELLED]
            == sum(by_queue)
            == kept
        )
        return kept


@pytest.fixture
async def history(clean_postgres: RunningPostgres) -> AsyncIterator[FinishedJobs]:
    made = FinishedJobs(clean_postgres)
    await made.backend.open()
    yield made
    await made.backend.close()


async def test_what_was_counted_is_not_counted_again(history: FinishedJobs) -> None:
    await history.finish(5)
    assert history.count_finished() == 0  # from now on it can be known who still runs
    assert history.count_finished() == 5
    await history.finish(3)
    assert await history.count_unpruned() == 8
    history.fetch(
        "UPDATE nimburion.finished_count SET number = number + 100 WHERE lane = 1 RETURNING 1"
    )
    assert (await history.backend.reads.count_jobs(budget=None))[State.CANCELLED] == 108


async def test_no_row_is_counted_twice(history: FinishedJobs) -> None:
    for n in range(4):
        await history.finish(5)
        assert history.count_finished() == (5 if n else 0)
    assert (history.count_finished(), history.read_counted) == (5, 20)
    assert (history.count_finished(), history.read_counted) == (0, 20)
    assert await history.count_unpruned() == 20


async def test_few_are_left_to_the_next_time(history: FinishedJobs) -> None:
    await history.finish(5)
    for _ in range(3):
        await history.backend.maintenance.prune(
            Retention(completed=None, failed=None, results=None), 100
        )
        history.clock.advance(LATER)
    assert history.read_counted == 0
    assert await history.count_unpruned() == 5


async def test_what_is_forgotten_or_deleted_is_taken_out(history: FinishedJobs) -> None:
    await history.finish(10)
    history.count_finished()
    assert history.count_finished() == 10
    for kept in (9, 7, 6):  # the horizon goes through what was counted
        await history.backend.maintenance.prune(Retention(completed=0), count_left(history, kept))
        assert await history.count_unpruned() == kept
    assert await delete(history.backend, JobFilter(ids=("9",), states=CANCELLED.states), 5) == ["9"]
    assert await history.count_unpruned() == 5
    await history.finish(4)
    assert await history.backend.maintenance.prune(Retention(completed_max=6), 100) == 3
    assert await history.count_unpruned() == 6
    history.clock.advance(1.0)
    await history.backend.maintenance.prune(Retention(completed=0), 100)
    assert await history.count_unpruned() == 0
    assert history.count_finished() == 0
    assert history.read_counted == 0


def count_left(history: FinishedJobs, kept: int) -> int:
    return history.fetch("SELECT count(*) FROM nimburion.job_record_finished") - kept


async def test_a_late_commit_of_a_finished_job_is_counted(
    history: FinishedJobs, clean_postgres: RunningPostgres
) -> None:
    await history.finish(5)
    with psycopg.connect(clean_postgres.url) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        assert [history.count_finished() for _ in range(3)] == [0, 0, 0]
        slow.rollback()
    assert history.count_finished() == 5


async def test_a_late_commit_of_a_delete_delays_the_count(
    history: FinishedJobs, clean_postgres: RunningPostgres
) -> None:
    await history.finish(5)
    history.count_finished()
    with psycopg.connect(clean_postgres.url) as slow:
        slow.execute(
            "SELECT nimburion.delete_jobs_1(NULL, CAST(%s AS bytea[]), '{cancelled}')", ([b"3"],)
        )
        assert history.count_finished() == 0
    assert history.count_finished() == 4
    assert await history.count_unpruned() == 4
