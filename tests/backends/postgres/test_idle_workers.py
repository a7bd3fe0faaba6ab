"""The rows of `idle_worker`: whom an enqueue may wake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.session import Session
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

FIRST, SECOND = "1f" * 16, "2e" * 16


async def open_idle_session(backend: PostgresBackend, session_id: str) -> None:
    """Open a session, and find no job in an exchange."""
    await backend.consuming.open_session(Session(id=session_id, names=("n",), queues=("q",)))
    request = ReserveRequest(1, (Lane("q", "n"),), nonce=bytes.fromhex(session_id))
    await backend.consuming.exchange(session_id, 1, [], request)


@asynccontextmanager
async def waiting(backend: PostgresBackend) -> AsyncIterator[None]:
    """Wait for jobs inside the block."""
    task = asyncio.create_task(backend.consuming.wait(("q",), 60.0))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_the_end_of_a_session_deletes_its_row(direct_postgres: RunningPostgres) -> None:
    """Also if the handle that waits does not close it. With the next session it has a row again."""
    backend, other = PostgresBackend(direct_postgres.url), PostgresBackend(direct_postgres.url)
    await backend.open()
    await other.open()
    async with await psycopg.AsyncConnection.connect(
        direct_postgres.url.partition("?")[0], autocommit=True
    ) as connection:

        async def read_sessions() -> list[str]:
            rows = await connection.execute("SELECT session FROM nimburion.idle_worker")
            return [session for (session,) in await rows.fetchall()]

        async def has_row(session_id: str) -> bool:
            return await read_sessions() == [session_id]

        await open_idle_session(backend, FIRST)
        async with waiting(backend):
            await wait_until(lambda: has_row(FIRST), "the worker has a row")
        await other.consuming.close_session(FIRST)
        assert await read_sessions() == []
        await open_idle_session(backend, SECOND)
        async with waiting(backend):
            await wait_until(lambda: has_row(SECOND), "the worker has a row again")
    await backend.close()
    await other.close()
