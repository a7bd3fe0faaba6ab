"""The turns of tenants on PostgreSQL, while other transactions are open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.core.transactions import CallerConnection
from nimburion.testing import FakeClock
from tests.servers.server_kinds import RunningPostgres

DEADLINE = 30.0


class Taker:
    """A worker of one queue that reserves one job at a time."""

    def __init__(self, backend: PostgresBackend, queue: str) -> None:
        self._backend = backend
        self._session = queue * 32
        self._lanes = (Lane(queue, "n"),)
        self._number = 0

    async def open(self) -> None:
        await self._backend.open_session(Session(id=self._session, ttl=600.0, names=("n",)))

    async def run(self, most: int) -> list[str]:
        """Run up to `most` jobs, one after another. Return their ids."""
        ran: list[str] = []
        ended: list[Completed] = []
        for total in (*[1] * most, 0):
            self._number += 1
            reply = await self._backend.exchange(
                self._session, self._number, ended, ReserveRequest(total, self._lanes)
            )
            ran += [delivery.lease.job_id for delivery in reply.deliveries]
            ended = [Completed(delivery.lease) for delivery in reply.deliveries]
            assert total or not reply.waiting
        return ran


def make(job_id: str, queue: str = "a") -> NewJob:
    """Return a job of the tenant that its first letter names."""
    return NewJob(job_id, "n", queue, b"{}", options=JobOptions(tenant=job_id[0]))


@pytest.fixture
async def backend(clean_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url, clock=FakeClock(), timeout=DEADLINE)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def connection(clean_postgres: RunningPostgres) -> AsyncIterator[asyncpg.Connection]:
    """The application's own."""
    made = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    yield made
    await made.close()


async def test_a_turn_without_a_job_delays_no_other_tenant(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """A caller's open transaction adds a job to a tenant whose last other job is taken meanwhile.
    The row of its turn then stays when the added job was taken, or is rolled back."""
    taker = Taker(backend, "a")
    await taker.open()
    await backend.enqueue([make("x1"), make("y1")])
    await connection.execute("BEGIN")
    await backend.enqueue_in(CallerConnection(connection), [make("x2")])
    assert await taker.run(2) == ["x1", "y1"]
    await connection.execute("COMMIT")
    assert await taker.run(1) == ["x2"]
    await backend.enqueue([make("y2")])
    await connection.execute("BEGIN")
    await backend.enqueue_in(CallerConnection(connection), [make("y3")])
    assert await taker.run(1) == ["y2"]
    await connection.execute("ROLLBACK")
    others = [f"z{n}" for n in range(6)]
    await backend.enqueue([make(job_id) for job_id in others])
    assert await taker.run(6) == others


async def test_an_exchange_does_not_wait_for_the_tenants_of_other_queues(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """An exchange that serves another queue changes the shares of its tenants. If the first one
    changed them as well, each could wait for the other."""
    first, other = Taker(backend, "a"), Taker(backend, "b")
    await first.open()
    await other.open()
    jobs = ["x1", "y1", "y2", "y3", "y4"]
    await backend.enqueue([make(job_id, "b") for job_id in jobs])
    assert sorted(await other.run(5)) == jobs
    await connection.execute("BEGIN")
    await connection.execute("SELECT nimburion.lock_floors_1(ARRAY['b'], 0, '{}')")
    await connection.execute("UPDATE nimburion.tenant_share SET unmeasured = 1 WHERE queue = 'b'")
    await backend.enqueue([make("x2", "b"), make("x1 of a")])  # below the floor of its queue
    async with asyncio.timeout(DEADLINE / 3):
        assert await first.run(1) == ["x1 of a"]
    await connection.execute("ROLLBACK")
    assert await other.run(1) == ["x2"]
