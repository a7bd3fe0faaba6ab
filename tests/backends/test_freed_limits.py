"""A freed place of a limit wakes a worker where a job waits for it, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.redis import RedisBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.core.exchange import Lane
from nimburion.core.limits import LimitRule
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from nimburion.testing.contract.consuming.waiting import FAR, check_woken, listening
from nimburion.testing.contract.harness import Harness
from tests.servers.server import Server
from tests.servers.server_kinds import RunningPostgres

HANDLES = 8


@pytest.fixture(params=["memory", "sqlite", "redis", "postgres"])
async def fleet(
    request: pytest.FixtureRequest, tmp_path: Path, valkey: Server, direct_postgres: RunningPostgres
) -> AsyncIterator[Harness]:
    """A harness with eight handles on one empty backend."""
    clock = FakeClock()
    handles: list[Backend]
    if request.param == "memory":
        first = MemoryBackend(clock=clock)
        handles = [first, *(first.new_handle() for _ in range(HANDLES - 1))]
    elif request.param == "sqlite":
        handles = [SQLiteBackend(tmp_path / "jobs.db", clock=clock) for _ in range(HANDLES)]
    elif request.param == "postgres":
        handles = [PostgresBackend(direct_postgres.url, clock=clock) for _ in range(HANDLES)]
    else:
        valkey.empty()
        handles = [RedisBackend(valkey.url, clock=clock) for _ in range(HANDLES)]
    for handle in handles:
        await handle.open()
    yield Harness(clock, handles)
    for handle in handles:
        await handle.close()


async def wait_on(fleet: Harness, queue: str, count: int, first: int) -> list[asyncio.Task[None]]:
    return [await listening(fleet, n, (queue,), FAR) for n in range(first, first + count)]


async def test_as_many_are_woken_as_places_are_free(fleet: Harness) -> None:
    await fleet.add(*"abcdef")
    worker = await fleet.worker(limits={"mail": 3})
    leases = [delivery.lease for delivery in await worker.take(3)]
    tasks = await wait_on(fleet, "default", 5, 1)
    await worker.settle(*(Completed(lease) for lease in leases[:2]))
    # On PostgreSQL, the first one wakes the next when it has found a job.
    await check_woken(fleet, tasks, 1 if isinstance(fleet.backend, PostgresBackend) else 2)


async def test_a_worker_is_woken_on_the_queue_where_a_job_waits(fleet: Harness) -> None:
    await fleet.add("a")
    await fleet.add("b", queue="other")
    worker = await fleet.worker(limits={"mail": 1})
    lease = (await worker.take_one()).lease
    own, other = await wait_on(fleet, "default", 3, 1), await wait_on(fleet, "other", 3, 4)
    await worker.settle(Completed(lease))
    await check_woken(fleet, other, 1)
    await check_woken(fleet, own, 0)


async def test_a_place_of_a_queue_wakes_a_worker_of_this_queue(fleet: Harness) -> None:
    await fleet.add("a")
    await fleet.add("b", name="post")
    rules = {"queue:default": LimitRule(1)}
    worker = await fleet.worker(
        names=("mail", "post"), keyed=dict.fromkeys(("mail", "post"), rules)
    )
    lease = (await worker.take_one()).lease
    own, other = await wait_on(fleet, "default", 3, 1), await wait_on(fleet, "other", 3, 4)
    await worker.settle(Completed(lease))
    await check_woken(fleet, own, 1)
    await check_woken(fleet, other, 0)


@pytest.mark.parametrize("why", ["no job waits", "the same exchange takes it"])
async def test_no_worker_is_woken_for_a_place_that_no_job_waits_for(
    fleet: Harness, why: str
) -> None:
    await fleet.add("a", *(["b"] if why != "no job waits" else []))
    worker = await fleet.worker(limits={"mail": 1})
    lease = (await worker.take_one()).lease
    tasks = await wait_on(fleet, "default", 4, 1)
    want = worker.want(1, lanes=(Lane("default", "mail"),))
    reply = await worker.exchange(Completed(lease), want=want)
    assert len(reply.deliveries) == (why != "no job waits")
    # PostgreSQL chooses before it reserves, so it may wake one worker in vain.
    in_vain = isinstance(fleet.backend, PostgresBackend) and why != "no job waits"
    await check_woken(fleet, tasks, 0, further=int(in_vain))
