"""Which sessions a rescue ends and locks, while others use them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob, State
from nimburion.core.session import Session
from nimburion.testing import FakeClock
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

SESSION = "5e" * 16
TTL = 30.0
LOCK = "SELECT pg_advisory_lock(hashtextextended(%s, 7041))"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def backend(
    clean_postgres: RunningPostgres, clock: FakeClock
) -> AsyncIterator[PostgresBackend]:
    """A backend with one session that has leased a job."""
    made = PostgresBackend(clean_postgres.url, clock=clock, timeout=60.0)
    await made.open()
    await made.open_session(Session(id=SESSION, ttl=TTL, names=("n",)))
    await made.enqueue([NewJob("a", "n", "q", b"{}")])
    reply = await made.exchange(SESSION, 1, [], ReserveRequest(1, (Lane("q", "n"),)))
    assert len(reply.deliveries) == 1
    yield made
    await made.close()


@pytest.fixture
async def rival(clean_postgres: RunningPostgres) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection that holds the lock of the session, as an exchange does."""
    async with await psycopg.AsyncConnection.connect(
        clean_postgres.url.partition("?")[0], autocommit=True
    ) as connection:
        await connection.execute(LOCK, (SESSION,))
        yield connection


async def count_waiting(connection: psycopg.AsyncConnection) -> int:
    """Return the number of advisory locks that are waited for."""
    row = await (await connection.execute(WAITING)).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_session_that_is_renewed_while_a_rescue_waits_for_it_lives_on(
    backend: PostgresBackend, clock: FakeClock, rival: psycopg.AsyncConnection
) -> None:
    clock.advance(TTL)
    rescue = asyncio.ensure_future(backend.rescue(10, max_lost=3))

    async def waits() -> bool:
        return await count_waiting(rival) > 0

    await wait_until(waits, "the rescue waits for the session")
    await backend.heartbeat(SESSION)
    await rival.execute("SELECT pg_advisory_unlock_all()")
    assert (await rescue).returned == []
    assert (await backend.get_job("a")).state is State.PROCESSING
    await backend.heartbeat(SESSION)


async def test_a_rescue_does_not_wait_for_a_session_that_has_not_expired(
    backend: PostgresBackend, clock: FakeClock, rival: psycopg.AsyncConnection
) -> None:
    clock.advance(TTL - 0.001)
    rescued = await asyncio.wait_for(backend.rescue(10, max_lost=3), 10.0)
    assert rescued.returned == []
    assert not rival.closed
