"""Three backends in three schemas of one database: none sees what the others do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from itertools import groupby

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.schema import MIGRATION_LOCK, NOTIFICATION_LOCK
from nimburion.core.job import JobOptions, State
from nimburion.core.limits import LimitChange, LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.session import WorkerCommand
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import Harness, ids
from tests.servers.server_kinds import RunningPostgres

pytestmark = pytest.mark.parametrize(
    "postgres_server", ["postgres", "postgres15", "postgres17"], indirect=True
)

SCHEMAS = ("nimburion", "user", "user_2")
LOCK = re.compile(r"hashtextextended\('([^']+)', (\d+)\)")
DAY = 86_400.0
DEADLINE = 30.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def harnesses(
    postgres_server: RunningPostgres, clock: FakeClock
) -> AsyncIterator[list[Harness]]:
    backends = [
        PostgresBackend(postgres_server.url, schema=schema, clock=clock, timeout=30.0)
        for schema in SCHEMAS
    ]
    for one in backends:
        await one.open()
    yield [Harness(clock, [one]) for one in backends]
    for one in backends:
        await one.close()


async def test_each_runs_its_own_jobs(harnesses: list[Harness]) -> None:
    options = JobOptions(unique_key="k")
    workers = []
    for number, harness in enumerate(harnesses):
        await harness.put(harness.job("same", payload=b"%d" % number, options=options))
        workers.append(await harness.worker())
    deliveries = [await worker.take_one() for worker in workers]
    assert [one.payload for one in deliveries] == [b"0", b"1", b"2"]
    assert [await worker.take() for worker in workers] == [[], [], []]
    await workers[1].settle(Completed(deliveries[1].lease))
    assert [await harness.state("same") for harness in harnesses] == [
        State.PROCESSING,
        State.COMPLETED,
        State.PROCESSING,
    ]


async def test_each_has_its_own_limits_and_pauses(harnesses: list[Harness]) -> None:
    keyed = {"mail": {"customer": LimitRule(1)}}
    options = JobOptions(limit_keys={"customer": "acme"}, tenant="t")
    for harness in harnesses:
        for name in ("a", "b"):
            await harness.put(harness.job(name, options=options))
    first, second, third = harnesses
    await first.backend.maintenance.pause_queue("default", paused=True)
    await second.backend.maintenance.change_limit(
        LimitChange(name="customer", key="acme", concurrency=2)
    )
    taken = [
        ids(await (await harness.worker(limits={"mail": 5}, keyed=keyed)).take(5))
        for harness in (first, second, third)
    ]
    assert taken == [[], ["a", "b"], ["a"]]


async def test_maintenance_of_one_leaves_the_others(
    harnesses: list[Harness], clock: FakeClock
) -> None:
    for harness in harnesses:
        await harness.add("completed", "lost")
        await harness.put(harness.job("later", after=DAY))
        worker = await harness.worker()
        completed, _ = await worker.take(2)
        await worker.settle(Completed(completed.lease))
    clock.advance(30 * DAY)
    first, *others = harnesses
    keep = Retention(completed=DAY, failed=DAY, results=DAY)
    assert (await first.backend.consuming.rescue(10, max_lost=3)).returned == ["lost"]
    assert (await first.backend.consuming.promote(10)).count == 1
    assert await first.backend.maintenance.prune(keep, 10) == 1
    assert isinstance(first.backend, PostgresBackend)
    await first.backend._database.fetch("SELECT {schema}.maintain_partitions_1()")
    for harness in others:
        assert await harness.state("completed") is State.COMPLETED
        assert await harness.state("lost") is State.PROCESSING
        assert len(await harness.backend.reads.list_sessions()) == 1
        assert await harness.backend.maintenance.prune(keep, 10) == 1


async def test_each_notifies_on_its_own_channel(
    harnesses: list[Harness], postgres_server: RunningPostgres
) -> None:
    connection = await psycopg.AsyncConnection.connect(postgres_server.url, autocommit=True)
    for schema in SCHEMAS:
        await connection.execute(f'LISTEN "{schema}.notify"'.encode())
    for harness in (*harnesses, harnesses[0]):
        await harness.add()
        await harness.backend.maintenance.send_command(
            (await harness.worker()).id, WorkerCommand.STOP
        )
        await harness.backend.close()  # sends the pending notifications
        await harness.backend.open()
    await connection.execute('LISTEN "end"; NOTIFY "end"')
    heard = []
    async with asyncio.timeout(DEADLINE):
        async for notification in connection.notifies():
            heard.append(notification.channel)
            if notification.channel == "end":
                break
    await connection.close()
    order = [f"{schema}.notify" for schema in (*SCHEMAS, SCHEMAS[0])]
    assert [channel for channel, _ in groupby(heard)] == [*order, "end"]


async def test_no_two_of_them_take_the_same_advisory_lock(
    harnesses: list[Harness], postgres_server: RunningPostgres
) -> None:
    def find_locks(schema: str) -> set[int]:
        found = {(f"{schema}.notify", NOTIFICATION_LOCK), (f"{schema}.meta", MIGRATION_LOCK)}
        for (text,) in postgres_server.ask(
            "SELECT prosrc FROM pg_proc WHERE pronamespace = CAST(%s AS regnamespace)",
            [f'"{schema}"'],
            database=postgres_server.database,
        ):
            found.update((name, int(number)) for name, number in LOCK.findall(text))
        assert {number for _, number in found} == {7042, 7043, 7044, 7045, 7046, 7047, 7048}
        return {
            value
            for name, number in found
            for (value,) in postgres_server.ask("SELECT hashtextextended(%s, %s)", [name, number])
        }

    locks = [find_locks(schema) for schema in SCHEMAS]
    assert [len(one) for one in locks] == [7, 7, 7]
    assert len(set.union(*locks)) == 21
