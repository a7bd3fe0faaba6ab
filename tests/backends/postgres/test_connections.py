"""How many connections a process has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nimburion import Context, Job, Processor
from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

_COUNT = """SELECT count(*) FROM pg_stat_activity
WHERE application_name = 'nimburion' AND datname = current_database()"""


class Follow(Job, name="follow"):
    """Enqueues another job until it has been called often enough, or waits."""

    left: int = 0

    async def process(self, ctx: Context) -> None:
        if self.left:
            await ctx.enqueue(Follow(left=self.left - 1))


def count_connections(server: RunningPostgres) -> int:
    ((count,),) = server.ask(_COUNT)
    return int(count)


@asynccontextmanager
async def run_worker(server: RunningPostgres) -> AsyncIterator[Processor]:
    processor = Processor(server.url)
    processor.register(Follow)
    await processor.start()
    try:
        yield processor
    finally:
        await processor.close()


async def test_an_idle_worker_alone_has_three(postgres_server: RunningPostgres) -> None:
    """For exchanges, for heartbeats, and to listen."""
    async with run_worker(postgres_server):
        await wait_until(lambda: count_connections(postgres_server) == 3, "three connections")
        assert count_connections(postgres_server) == 3


async def test_callers_get_connections_which_are_closed_when_unused(
    postgres_server: RunningPostgres,
) -> None:
    async with run_worker(postgres_server) as processor:
        await asyncio.gather(*(processor.enqueue(Follow(left=2)) for _ in range(20)))
        assert 3 < count_connections(postgres_server) <= 3 + 4
        await wait_until(lambda: count_connections(postgres_server) == 3, "three connections")


async def test_a_process_that_enqueues_keeps_one(postgres_server: RunningPostgres) -> None:
    backend = PostgresBackend(postgres_server.url)
    await backend.open()
    await asyncio.gather(
        *(backend.producing.enqueue([NewJob(f"j{n}", "n", "q", b"{}")]) for n in range(20))
    )
    assert count_connections(postgres_server) == 4
    await wait_until(lambda: count_connections(postgres_server) == 1, "one connection")
    await backend.producing.enqueue([NewJob("last", "n", "q", b"{}")])
    assert count_connections(postgres_server) == 1
    await backend.close()
    await wait_until(lambda: count_connections(postgres_server) == 0, "no connection")
