"""Large payloads: what one reply brings is bounded."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import DELIVERY_OVERHEAD, Lane, Reply, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from tests.servers.server_kinds import RunningPostgres

MIB = 1024 * 1024
SESSION = "5e" * 16
LARGE = MIB - DELIVERY_OVERHEAD
LANES = (Lane("q", "n"), Lane("q", "m"))
MAX_TIMEOUT = 3600.0
"""No call ends before its reply, however busy the machine is."""


@pytest.fixture
async def backend(clean_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url, timeout=MAX_TIMEOUT, clock=FakeClock())
    await made.open()
    await made.consuming.open_session(Session(id=SESSION, ttl=600.0, names=("n", "m")))
    yield made
    await made.close()


async def take(backend: PostgresBackend, number: int, lanes: tuple[Lane, ...]) -> Reply:
    return await backend.consuming.exchange(SESSION, number, [], ReserveRequest(500, lanes))


@pytest.mark.parametrize("names", ["n", "nm"])
async def test_a_reply_brings_sixteen_mebibytes_and_the_rest_waits(
    backend: PostgresBackend, names: str
) -> None:
    jobs = [
        NewJob(str(n), names[n % len(names)], "q", bytes([65 + n]) * LARGE, at=n + 1.0)
        for n in range(36)
    ]
    await backend.producing.enqueue(jobs)
    lanes = LANES[: len(names)]
    got: list[str] = []
    for number, count in ((1, 16), (2, 16), (3, 4)):
        reply = await take(backend, number, lanes)
        again = await take(backend, number, lanes)
        assert again.deliveries == reply.deliveries
        assert len(reply.deliveries) == count
        assert bool(reply.waiting) is (number < 3)
        got += [one.lease.job_id for one in reply.deliveries]
        assert all(len(one.payload) == LARGE for one in reply.deliveries)
    assert got == [str(n) for n in range(36)]
    (queue,) = await backend.reads.list_queues()
    assert (queue.size, queue.processing) == (0, 36)


async def test_what_is_larger_than_that_goes_alone(backend: PostgresBackend) -> None:
    await backend.producing.enqueue(
        [NewJob(str(n), "n", "q", b"x" * 17 * MIB, at=n + 1.0) for n in range(2)]
    )
    for number in (1, 2):
        reply = await take(backend, number, LANES[:1])
        assert [one.lease.job_id for one in reply.deliveries] == [str(number - 1)]
        lease = reply.deliveries[0].lease
        await backend.consuming.exchange(SESSION, number, [], ReserveRequest(500, LANES[:1]))
        assert lease.token.fence == 1


async def test_what_went_back_is_a_first_delivery_later(backend: PostgresBackend) -> None:
    """It counts nothing, and keeps its place before what came after it."""
    await backend.producing.enqueue(
        [NewJob(str(n), "n", "q", b"x" * 9 * MIB, at=n + 1.0) for n in range(2)]
    )
    (first,) = (await take(backend, 1, LANES[:1])).deliveries
    await backend.producing.enqueue([NewJob("2", "n", "q", b"{}")])
    want = ReserveRequest(500, LANES[:1])
    reply = await backend.consuming.exchange(SESSION, 2, [Completed(first.lease)], want)
    assert [one.lease.job_id for one in reply.deliveries] == ["1", "2"]
    assert [one.lease.token.fence for one in reply.deliveries] == [1, 1]
