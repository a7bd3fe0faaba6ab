"""What a claim passes by: never a job, however late its transaction commits."""

from __future__ import annotations

from collections.abc import AsyncIterator

import asyncpg
import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.transactions import CallerConnection
from tests.servers.server_kinds import RunningPostgres

SESSION = "5e" * 16
LANES = (Lane("q", "n"),)


class Taker:
    def __init__(self, backend: PostgresBackend) -> None:
        self._backend = backend
        self._number = 0

    async def take(self) -> list[str]:
        self._number += 1
        reply = await self._backend.exchange(SESSION, self._number, [], ReserveRequest(10, LANES))
        return [one.lease.job_id for one in reply.deliveries]


@pytest.fixture
async def backend(postgres_server: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(postgres_server.url, timeout=60.0)
    await made.open()
    await made.open_session(Session(id=SESSION, ttl=600.0, names=("n",)))
    yield made
    await made.close()


@pytest.fixture
async def taker(backend: PostgresBackend) -> Taker:
    """A worker that knows its lane to be empty."""
    made = Taker(backend)
    await backend.enqueue([NewJob("first", "n", "q", b"{}")])
    assert await made.take() == ["first"]
    assert [await made.take() for _ in range(3)] == [[], [], []]
    return made


@pytest.mark.parametrize("others", [False, True])
@pytest.mark.parametrize("looks", [1, 2, 5])
async def test_a_job_whose_transaction_commits_late_is_found(
    backend: PostgresBackend,
    taker: Taker,
    postgres_server: RunningPostgres,
    looks: int,
    others: bool,
) -> None:
    late = await asyncpg.connect(postgres_server.url, statement_cache_size=0)
    transaction = late.transaction()
    await transaction.start()
    await backend.enqueue_in(CallerConnection(late), [NewJob("late", "n", "q", b"{}")])
    for n in range(looks):
        assert await taker.take() == []
        if others:
            await backend.enqueue([NewJob(f"other {n}", "m", "q", b"{}")])
    await transaction.commit()
    assert await taker.take() == ["late"]
    await late.close()


async def test_several_that_overlap_are_all_found(
    backend: PostgresBackend, taker: Taker, postgres_server: RunningPostgres
) -> None:
    """Each begins while the one before runs, and commits after two looks."""
    found: list[str] = []
    running: list[psycopg.Connection] = []
    for n in range(12):
        mine = psycopg.connect(postgres_server.url)
        await backend.enqueue_in(CallerConnection(mine), [NewJob(str(n), "n", "q", b"{}")])
        running.append(mine)
        found += await taker.take()
        if len(running) > 2:
            with running.pop(0) as done:
                done.commit()
    for left in running:
        with left:
            left.commit()
    found += await taker.take()
    assert sorted(found, key=int) == [str(n) for n in range(12)]
