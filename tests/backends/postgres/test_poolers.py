"""What a backend says of itself where PgBouncer stands between, and what workers make of it."""

from __future__ import annotations

import asyncio

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob
from nimburion.jobs import Processor
from nimburion.testing import FakeClock
from tests.servers.server_kinds import RunningPostgres

DEADLINE = 30.0


def is_pooled(server: RunningPostgres) -> bool:
    return "PgBouncer" in server.name


async def test_capabilities_say_whether_notifications_work(
    clean_postgres: RunningPostgres,
) -> None:
    backend = PostgresBackend(clean_postgres.url)
    await backend.open()
    assert backend.capabilities.notifies is not is_pooled(clean_postgres)
    await backend.close()


def test_the_pooler_option_is_known_before_open() -> None:
    assert PostgresBackend("postgresql://h/x").capabilities.notifies
    assert not PostgresBackend("postgresql://h/x?pooler=yes").capabilities.notifies


async def test_notifications_work_within_a_process_behind_a_pooler(
    clean_postgres: RunningPostgres,
) -> None:
    clock = FakeClock()
    backend = PostgresBackend(clean_postgres.url, clock=clock)
    await backend.open()
    waiting = asyncio.create_task(backend.consuming.wait(["q"], 1e6))
    await backend.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    await asyncio.wait_for(waiting, DEADLINE)
    assert waiting.done()
    await backend.close()


async def test_a_worker_finds_what_another_process_enqueued(
    clean_postgres: RunningPostgres,
) -> None:
    done = asyncio.Event()

    async def handler(_: object, __: bytes) -> None:
        done.set()

    worker = Processor(PostgresBackend(clean_postgres.url))
    worker.register("n", handler, queue="q")
    async with worker:
        await worker.start()
        other = PostgresBackend(clean_postgres.url)
        await other.open()
        await other.producing.enqueue([NewJob("a", "n", "q", b"{}")])
        await asyncio.wait_for(done.wait(), DEADLINE)
        assert done.is_set()
        await other.close()
        await worker.stop()
