"""Counts are exact, and do not count what was counted before."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob, State
from nimburion.core.operations import Retention
from nimburion.core.queries import JobFilter
from nimburion.testing import FakeClock
from tests.servers.server_kinds import RunningPostgres

QUEUES = ("one", "two")
LATER = 100.0
CANCELLED = JobFilter(states=frozenset({State.CANCELLED}))


class History:
    """Cancelled jobs, and what is said of them."""

    def __init__(self, server: RunningPostgres) -> None:
        self.clock = FakeClock()
        self.store = PostgresBackend(server.url, clock=self.clock)
        self._server = server
        self._made = 0

    def ask(self, text: str) -> int:
        ((number,),) = self._server.ask(text, database=self._server.database)
        return int(number or 0)

    async def end(self, count: int) -> None:
        """Have so many more that ended, a second apart."""
        for n in range(self._made, self._made + count):
            self.clock.advance(1.0)
            await self.store.enqueue([NewJob(str(n), "n", QUEUES[n % 2], b"{}")])
            await self.store.cancel(str(n))
        self._made += count

    def tally(self) -> int:
        self.clock.advance(LATER)
        return self.ask(f"SELECT nimburion.tally_1({int(self.clock.now() * 1e6)}, 1)")

    @property
    def tallied(self) -> int:
        return self.ask("SELECT sum(number) FROM nimburion.tally")

    async def kept(self) -> int:
        """How many there are, if all ways to count agree."""
        kept = self.ask("SELECT count(*) FROM nimburion.record_done")
        by_queue = [(await self.store.counts(queue))[State.CANCELLED] for queue in QUEUES]
        assert (await self.store.counts())[State.CANCELLED] == sum(by_queue) == kept
        return kept


@pytest.fixture
async def history(postgres_server: RunningPostgres) -> AsyncIterator[History]:
    made = History(postgres_server)
    await made.store.open()
    yield made
    await made.store.close()


async def test_what_was_counted_is_not_counted_again(history: History) -> None:
    await history.end(5)
    assert history.tally() == 0  # from now on it can be known who still runs
    assert history.tally() == 5
    await history.end(3)
    assert await history.kept() == 8
    history.ask("UPDATE nimburion.tally SET number = number + 100 WHERE lane = 1 RETURNING 1")
    assert (await history.store.counts())[State.CANCELLED] == 108


async def test_nobody_counts_twice(history: History) -> None:
    for n in range(4):
        await history.end(5)
        assert history.tally() == (5 if n else 0)
    assert (history.tally(), history.tallied) == (5, 20)
    assert (history.tally(), history.tallied) == (0, 20)
    assert await history.kept() == 20


async def test_few_are_left_to_the_next_time(history: History) -> None:
    await history.end(5)
    for _ in range(3):
        await history.store.prune(Retention(completed=None, failed=None, results=None), 100)
        history.clock.advance(LATER)
    assert history.tallied == 0
    assert await history.kept() == 5


async def test_what_is_forgotten_or_deleted_is_taken_out(history: History) -> None:
    await history.end(10)
    history.tally()
    assert history.tally() == 10
    for kept in (9, 7, 6):  # the horizon goes through what was counted
        await history.store.prune(Retention(completed=0), history_left(history, kept))
        assert await history.kept() == kept
    assert await history.store.delete(JobFilter(ids=("9",), states=CANCELLED.states), 5) == ["9"]
    assert await history.kept() == 5
    await history.end(4)
    assert await history.store.prune(Retention(completed_max=6), 100) == 3
    assert await history.kept() == 6
    history.clock.advance(1.0)
    await history.store.prune(Retention(completed=0), 100)
    assert await history.kept() == 0
    assert history.tally() == 0
    assert history.tallied == 0


def history_left(history: History, kept: int) -> int:
    return history.ask("SELECT count(*) FROM nimburion.record_done") - kept


async def test_who_ends_a_job_and_commits_late_is_waited_for(
    history: History, postgres_server: RunningPostgres
) -> None:
    await history.end(5)
    with psycopg.connect(postgres_server.url) as slow:
        slow.execute("SELECT pg_current_xact_id()")
        assert [history.tally() for _ in range(3)] == [0, 0, 0]
        slow.rollback()
    assert history.tally() == 5


async def test_who_deletes_and_commits_late_keeps_the_count_waiting(
    history: History, postgres_server: RunningPostgres
) -> None:
    await history.end(5)
    history.tally()
    with psycopg.connect(postgres_server.url) as slow:
        slow.execute(
            "SELECT nimburion.delete_1(NULL, 'X', NULL, NULL, NULL, CAST(%s AS bytea[]), 9)",
            ([b"3"],),
        )
        assert history.tally() == 0
    assert history.tally() == 4
    assert await history.kept() == 4
