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
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 7041))"


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
    await made.consuming.open_session(Session(id=SESSION, ttl=TTL, names=("n",)))
    await made.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    reply = await made.consuming.exchange(SESSION, 1, [], ReserveRequest(1, (Lane("q", "n"),)))
    assert len(reply.deliveries) == 1
    yield made
    await made.close()


@pytest.fixture
async def connection(clean_postgres: RunningPostgres) -> AsyncIterator[psycopg.AsyncConnection]:
    async with await psycopg.AsyncConnection.connect(
        clean_postgres.url.partition("?")[0], autocommit=True
    ) as made:
        yield made


@pytest.fixture
async def rival(connection: psycopg.AsyncConnection) -> psycopg.AsyncConnection:
    """A connection that holds the lock of the session, as an exchange does."""
    await connection.execute("BEGIN")  # behind PgBouncer, only a transaction can hold a lock
    await connection.execute(LOCK, (SESSION,))
    return connection


async def test_a_rescue_passes_over_a_session_that_another_call_changes(
    backend: PostgresBackend, clock: FakeClock, rival: psycopg.AsyncConnection
) -> None:
    """It rescues the others, and the next rescue ends the session if it was not renewed."""
    other = "07" * 16
    await backend.consuming.open_session(Session(id=other, ttl=TTL, names=("n",)))
    await backend.producing.enqueue([NewJob("b", "n", "q", b"{}")])
    await backend.consuming.exchange(other, 1, [], ReserveRequest(1, (Lane("q", "n"),)))
    clock.advance(TTL)
    rescued = await asyncio.wait_for(backend.consuming.rescue(10, max_lost=3), 10.0)
    assert rescued.returned == ["b"]
    assert (await backend.reads.get_job("a")).state is State.PROCESSING
    await rival.execute("ROLLBACK")
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == ["a"]


async def test_a_session_that_is_renewed_while_a_rescue_ends_it_lives_on(
    backend: PostgresBackend, clock: FakeClock, connection: psycopg.AsyncConnection
) -> None:
    clock.advance(TTL)
    await connection.execute("BEGIN")
    await connection.execute("UPDATE nimburion.session SET expires_at = expires_at + ttl")
    rescue = asyncio.ensure_future(backend.consuming.rescue(10, max_lost=3))

    async def waits() -> bool:
        cursor = await connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return await cursor.fetchone() != (0,)

    await wait_until(waits, "the rescue waits for the heartbeat")
    await connection.execute("COMMIT")
    assert (await rescue).returned == []
    assert (await backend.reads.get_job("a")).state is State.PROCESSING
    await backend.consuming.heartbeat(SESSION)


async def test_a_dead_worker_is_noticed_after_the_clock_was_set_back(
    backend: PostgresBackend, clock: FakeClock, connection: psycopg.AsyncConnection
) -> None:
    """Until then its session would live for as long as the clock was set back."""
    await connection.execute("UPDATE nimburion.session SET expires_at = expires_at + 3600000000")
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == []
    clock.advance(TTL - 0.001)
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == []
    clock.advance(0.001)
    assert (await backend.consuming.rescue(10, max_lost=3)).returned == ["a"]


async def test_a_rescue_locks_no_session_that_has_not_expired(
    backend: PostgresBackend, clock: FakeClock, connection: psycopg.AsyncConnection
) -> None:
    del backend  # it has made the session
    now = round(clock.now() * 1_000_000), round((clock.monotonic() + TTL - 0.001) * 1_000_000)
    await connection.execute("BEGIN")
    await connection.execute(
        "SELECT * FROM nimburion.rescue_jobs_1(%s::int8, %s::int8, 10, 3, '', '')", now
    )
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
    )
    assert await cursor.fetchone() == (0,)
    await connection.execute("ROLLBACK")
