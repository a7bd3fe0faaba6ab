"""How many connections a process has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from nimburion import Context, Job, Processor
from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.connection import pool
from nimburion.core.job import NewJob
from nimburion.core.listener import (
    Listener,
    MakeListener,
    OnListening,
    OnNotification,
    ShareListener,
)
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until, wait_until_finished

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


async def expect_connections(server: RunningPostgres, count: int) -> None:
    """Wait until there are `count` connections. Fail if that takes too long."""
    await wait_until(lambda: count_connections(server) == count, f"{count} connections")


@asynccontextmanager
async def run_worker(
    server: RunningPostgres, share: ShareListener | None = None
) -> AsyncIterator[Processor]:
    backend = PostgresBackend(server.url)
    if share is not None:
        backend.consuming.share_listener(share)
    processor = Processor(backend)
    processor.register(Follow)
    await processor.start()
    try:
        yield processor
    finally:
        await processor.close()


async def test_an_idle_worker_alone_has_two(direct_postgres: RunningPostgres) -> None:
    """For exchanges and to listen, and for heartbeats."""
    async with run_worker(direct_postgres):
        await expect_connections(direct_postgres, 2)


class ListenerOfHandles(Listener):
    """Lets the first handle of this process listen for all, as a supervisor does for processes."""

    def __init__(self) -> None:
        self._attached: list[tuple[OnListening, OnNotification]] = []
        self._wanted: dict[str, list[OnNotification]] = {}
        self._listener: Listener | None = None

    def attach(
        self,
        make_listener: MakeListener,
        on_listening: OnListening,
        on_notification: OnNotification,
    ) -> Listener:
        self._attached.append((on_listening, on_notification))
        if self._listener is None:
            self._listener = make_listener(self._note_listening, self._receive)
        return self

    def listen(self, channels: Collection[str]) -> None:
        for channel in channels:
            self._wanted.setdefault(channel, []).append(self._attached[-1][1])
        if self._listener is not None:
            self._listener.listen(self._wanted)

    async def close(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    def _note_listening(self, channels: Collection[str]) -> None:
        for on_listening, _ in self._attached:
            on_listening(channels)

    def _receive(self, channel: str, text: str) -> None:
        for on_notification in self._wanted[channel]:
            on_notification(channel, text)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shared"), [(45, False), (45, True)])
async def test_a_stock_server_is_enough_for_many_idle_workers(
    postgres_binary: Binary, workers: int, *, shared: bool
) -> None:
    share = ListenerOfHandles().attach if shared else None
    with PostgresServer(postgres_binary, "max_connections=100") as server:
        async with AsyncExitStack() as stack:
            fleet = [
                await stack.enter_async_context(run_worker(server, share)) for _ in range(workers)
            ]
            expected = 2 * workers + 1 if shared else 2 * workers
            await expect_connections(server, expected)
            job_ids = [await fleet[0].enqueue(Follow()) for _ in fleet]
            for job_id in job_ids:
                await wait_until_finished(fleet[0], job_id)
            assert [processor.health().state for processor in fleet] == ["ready"] * workers
        assert "too many clients" not in server.log


async def enqueue_at_once(backend: PostgresBackend) -> None:
    await asyncio.gather(
        *(backend.producing.enqueue([NewJob(f"j{n}", "n", "q", b"{}")]) for n in range(20))
    )


@pytest.fixture
def keeping_unused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pool closes a connection because it is not used."""
    monkeypatch.setattr(pool, "_IDLE_INTERVAL", 1000.0)


@pytest.mark.usefixtures("keeping_unused")
async def test_callers_get_up_to_four(direct_postgres: RunningPostgres) -> None:
    await expect_connections(direct_postgres, 0)  # those of the last test have ended
    async with run_worker(direct_postgres) as processor:
        await asyncio.gather(*(processor.enqueue(Follow(left=2)) for _ in range(20)))
        assert 2 < count_connections(direct_postgres) <= 2 + 4


async def test_those_of_callers_are_closed_when_unused(direct_postgres: RunningPostgres) -> None:
    async with run_worker(direct_postgres) as processor:
        await asyncio.gather(*(processor.enqueue(Follow(left=2)) for _ in range(20)))
        await expect_connections(direct_postgres, 2)


@pytest.mark.usefixtures("keeping_unused")
async def test_a_process_that_enqueues_at_once_has_four(direct_postgres: RunningPostgres) -> None:
    await expect_connections(direct_postgres, 0)  # those of the last test have ended
    backend = PostgresBackend(direct_postgres.url)
    await backend.open()
    await enqueue_at_once(backend)
    assert count_connections(direct_postgres) == 4
    await backend.close()


async def test_a_process_that_enqueues_keeps_one(direct_postgres: RunningPostgres) -> None:
    backend = PostgresBackend(direct_postgres.url)
    await backend.open()
    await enqueue_at_once(backend)
    await expect_connections(direct_postgres, 1)
    await backend.producing.enqueue([NewJob("last", "n", "q", b"{}")])
    assert count_connections(direct_postgres) == 1
    await backend.close()
    await expect_connections(direct_postgres, 0)
