"""The idle entries of workers on PostgreSQL: who writes them, and when they are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.testing.contract.harness import HandDrivenWorker
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import DEADLINE, wait_until

SESSION = Session(id="s" * 32, ttl=60.0, queues=("default",), names=("n",))


@pytest.fixture
async def worker(direct_postgres: RunningPostgres) -> AsyncIterator[HandDrivenWorker]:
    backend = PostgresBackend(direct_postgres.url)
    await backend.open()
    worker = HandDrivenWorker(backend, SESSION)
    await worker.open()
    yield worker
    await backend.close()


@pytest.fixture
async def client(direct_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    backend = PostgresBackend(direct_postgres.url)
    await backend.open()
    yield backend
    await backend.close()


def is_waiting(server: RunningPostgres) -> bool:
    """Return whether the entry of the only worker says that it waits."""
    rows = server.ask("SELECT is_waiting FROM nimburion.idle_worker")
    return rows == [(True,)]


async def wait_for_job(worker: HandDrivenWorker) -> None:
    async with asyncio.timeout(DEADLINE):
        await worker.backend.consuming.wait(["default"], DEADLINE)


async def wake(
    worker: HandDrivenWorker, client: PostgresBackend, server: RunningPostgres, job_id: str
) -> None:
    """Let the worker wait, and wake it by a job."""
    waiting = asyncio.create_task(wait_for_job(worker))
    await wait_until(lambda: is_waiting(server), "it waits")
    await client.producing.enqueue([NewJob(job_id, "n", "default", b"{}")])
    await waiting
    assert not is_waiting(server)


async def test_an_exchange_that_finds_nothing_adds_the_entry(
    worker: HandDrivenWorker, client: PostgresBackend, direct_postgres: RunningPostgres
) -> None:
    await wake(worker, client, direct_postgres, "a")
    delivery = await worker.take_one()
    assert not is_waiting(direct_postgres), "it reserved a job"
    await worker.exchange(Completed(delivery.lease), want=worker.want())
    assert is_waiting(direct_postgres), "no call of `wait` was needed"
    await client.producing.enqueue([NewJob("b", "n", "default", b"{}")])
    await wait_for_job(worker)  # the wake-up came before the call
    assert (await worker.take_one()).lease.job_id == "b"


async def test_an_exchange_adds_no_entry_where_jobs_wait_or_no_slot_is_free(
    worker: HandDrivenWorker, client: PostgresBackend, direct_postgres: RunningPostgres
) -> None:
    await wake(worker, client, direct_postgres, "a")
    await client.producing.enqueue([NewJob(job_id, "n", "default", b"{}") for job_id in "bc"])
    assert (await worker.exchange(want=worker.want(1))).waiting
    assert len(await worker.take(2)) == 2
    assert not is_waiting(direct_postgres)
    await worker.exchange()
    assert not is_waiting(direct_postgres), "it asked for no job"


async def test_a_worker_whose_wake_up_was_lost_can_be_woken_after_a_poll(
    worker: HandDrivenWorker, client: PostgresBackend, direct_postgres: RunningPostgres
) -> None:
    waiting = asyncio.create_task(worker.backend.consuming.wait(["default"], 0.5))
    await wait_until(lambda: is_waiting(direct_postgres), "it waits")
    direct_postgres.ask("UPDATE nimburion.idle_worker SET is_waiting = false")  # and no NOTIFY
    await waiting
    await client.producing.enqueue([NewJob("a", "n", "default", b"{}")])
    delivery = await worker.take_one()
    await worker.exchange(Completed(delivery.lease), want=worker.want())
    assert is_waiting(direct_postgres)
