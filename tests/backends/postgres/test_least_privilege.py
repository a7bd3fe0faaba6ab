"""A role that may make nothing is enough for all that is done with a backend."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.audit import AuditRecord, list_audit, put_audit
from nimburion.core.backend import Backend
from nimburion.core.errors import ConfigurationError, PermanentError
from nimburion.core.job import State
from nimburion.core.maintenance import Retention
from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.queries import JobFilter
from nimburion.core.schedules import (
    ScheduleRecord,
    delete_schedule,
    list_schedules,
    pause_schedule,
    put_schedule,
)
from nimburion.core.session import WorkerCommand
from nimburion.jobs import Context, Processor, job
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import delete, replay
from nimburion.testing.contract.harness import Harness
from tests.backends.postgres.roles import WORKER, open_as_worker_role
from tests.servers.server_kinds import RunningPostgres

FAILED = JobFilter(states=frozenset({State.FAILED}))

pytestmark = pytest.mark.parametrize(
    "postgres_server", ["postgres", "postgres15", "postgres17"], indirect=True
)


@pytest.fixture
async def backend(postgres_server: RunningPostgres) -> AsyncIterator[Backend]:
    async with open_as_worker_role(postgres_server) as made:
        yield made


@job(queue="greetings", max_retries=1, retry_backoff=0, concurrency=2)
async def greet(ctx: Context, name: str) -> str:
    ctx.progress(0.5, "half")
    if name == "nobody":
        raise PermanentError("nobody to greet")
    if name == "Bob" and ctx.attempt == 1:
        raise OSError("Bob is out")
    return f"Hello {name}"


async def test_it_runs_jobs(backend: Backend) -> None:
    processor = Processor(backend.new_handle())
    processor.register(greet)
    async with processor:
        for name in ("Ann", "Bob", "nobody"):
            await processor.enqueue(greet.job(name), id=name, unique_key=name)
        assert await processor.drain() == 4
        assert await processor.wait("Bob", timeout=20) == "Hello Bob"
        assert [one.id async for one in processor.dead.list()] == ["nobody"]
        assert await processor.dead.replay("nobody") == ["nobody"]
        await processor.drain()
        assert len(await processor.dead.purge_all()) == 1


async def test_it_looks_after_them(backend: Backend) -> None:
    harness = Harness(FakeClock(), [backend])
    await harness.add("a", "b", "c")
    await backend.producing.cancel("a")
    worker = await harness.worker()
    await worker.take_one()
    await backend.consuming.heartbeat(worker.id)
    assert await backend.consuming.rescue(10, max_lost=3) is not None
    await backend.consuming.promote(10)
    await backend.maintenance.pause_queue("mail", paused=True)
    await backend.maintenance.pause_queue("mail", paused=False)
    assert (await backend.reads.count_jobs(budget=None))[State.CANCELLED] == 1
    assert len((await backend.reads.list_jobs()).jobs) == 3
    assert await backend.reads.list_queues() != []
    assert len(await backend.reads.list_sessions()) == 1
    assert await backend.maintenance.send_command(worker.id, WorkerCommand.QUIET)
    assert await backend.reads.list_limits() == []
    assert (await backend.reads.explain_job("a")).job.id == "a"
    assert (await backend.reads.group_failures()).groups == []
    await backend.maintenance.prune(Retention(completed=0, failed=0, results=0), 100)
    await replay(backend, FAILED, 10)
    await delete(backend, FAILED, 10)
    await backend.consuming.close_session(worker.id)


async def test_it_keeps_statistics_and_audit_records(backend: Backend) -> None:
    row = Statistics(step=60, start=60, queue="q", name="n", counters=Counters(started=1))
    await backend.consuming.put_statistics("source", [row])
    assert await backend.reads.list_statistics(0.0, 120.0, 60) == [row]
    await put_audit(backend, AuditRecord(id="a", action="queue.pause"))
    assert len((await list_audit(backend)).records) == 1


async def test_it_keeps_schedules(backend: Backend) -> None:
    harness = Harness(FakeClock(), [backend])
    await put_schedule(backend, ScheduleRecord(name="nightly", spec=b"{}"))
    fired = await backend.producing.fire("nightly", None, 1000.0, harness.job("tick"), "allow")
    assert fired.outcome == "fired"
    assert await pause_schedule(backend, "nightly", paused=True)
    assert [one.paused for one in await list_schedules(backend)] == [True]
    assert await delete_schedule(backend, "nightly")


async def test_health_checks_run(backend: Backend) -> None:
    found = {one.subject: one.verdict for one in await backend.check()}
    assert found["format"] == "good"
    assert await backend.migrate(dry_run=True) == []
    assert await backend.migrate() == []


async def test_it_may_make_nothing(backend: Backend, postgres_server: RunningPostgres) -> None:
    with pytest.raises(ConfigurationError, match="may not create the tables"):
        await PostgresBackend(postgres_server.url_for(WORKER), schema="other").open()
