"""Durable runs on PostgreSQL: what two transactions do at the same time, and what is removed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.bulk_operations import BulkAction
from nimburion.core.errors import LeaseLost
from nimburion.core.exchange import QueueOptions
from nimburion.core.flows import NewFlow, On, SourceKind
from nimburion.core.job import JobOptions, State
from nimburion.core.limits import LimitRule
from nimburion.core.maintenance import Retention
from nimburion.core.runs import (
    CANCEL_SIGNAL,
    CLEANUP_STEP,
    MAX_DELIVERED_RUN,
    SignalOutcome,
    make_time_source,
)
from nimburion.core.settlement import Completed, Failed, Recorded, Released, Retried, Suspended
from nimburion.testing import FakeClock
from nimburion.testing.contract.flows.graphs import fail, make_flow, member, store
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness, ids
from nimburion.testing.contract.runs.run_jobs import (
    PAID,
    RUN,
    flow_source,
    read,
    read_signals,
    read_steps,
    record,
    send,
    start,
    start_suspended,
    suspend,
)
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

DEADLINE = 30.0
DAY = 86_400.0


@pytest.fixture
async def harness(clean_postgres: RunningPostgres) -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = PostgresBackend(clean_postgres.url, clock=clock, timeout=DEADLINE)
    await backend.open()
    async with asyncio.timeout(DEADLINE):
        yield Harness(clock, [backend])
    await backend.close()


@pytest.fixture
async def rival(clean_postgres: RunningPostgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection of another program."""
    made = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    yield made
    await made.close()


async def count_blocked(rival: asyncpg.Connection) -> int:
    """Return how many sessions wait for a lock of another one."""
    await rival.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction reads them once
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND cardinality(pg_blocking_pids(pid)) > 0"
    )
    return int(await rival.fetchval(query))


async def wait_until_blocked(rival: asyncpg.Connection, count: int) -> None:
    """Wait until this number of sessions wait for locks."""

    async def are_blocked() -> bool:
        return await count_blocked(rival) == count

    await wait_until(are_blocked, f"{count} sessions wait for locks")


async def test_a_signal_to_a_run_that_is_being_suspended_resumes_it(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """The sender waits for the exchange, and then sees for what the run waits."""
    worker = await harness.worker()
    held = await start(harness, worker)
    await record(worker, held, 1)
    await store(harness, [member("a")])
    transaction = rival.transaction()
    await transaction.start()
    await rival.execute("SELECT FROM nimburion.flow FOR UPDATE")
    suspending = asyncio.create_task(suspend(worker, held, PAID, flow_source("import")))
    await wait_until_blocked(rival, 1)  # the run is suspended, and nobody sees it yet
    sending = asyncio.create_task(send(harness))
    await wait_until_blocked(rival, 2)
    await transaction.rollback()
    await suspending
    assert await sending is SignalOutcome.STORED
    assert await harness.state(RUN) is State.PENDING


async def test_a_run_that_suspends_finds_a_signal_that_is_being_stored(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """The exchange waits for the sender, and then sees the signal."""
    worker = await harness.worker()
    held = await start(harness, worker)
    await record(worker, held, 1)  # with a row of its own, whose lock is all that they wait for
    transaction = rival.transaction()
    await transaction.start()
    await rival.execute(
        "INSERT INTO nimburion.signal (seq, number, at, is_unread, id, name, payload)"
        " SELECT seq, 1, 0, true, 's1', 'other', '' FROM nimburion.job"
    )
    sending = asyncio.create_task(send(harness))
    await wait_until_blocked(rival, 1)  # the sender has the lock of the run
    exchanging = asyncio.create_task(
        worker.exchange(Suspended(held.lease, (PAID,)), want=worker.want(1))
    )
    await wait_until_blocked(rival, 2)
    await transaction.rollback()
    assert await sending is SignalOutcome.STORED
    assert ids((await exchanging).deliveries) == [RUN]


async def test_a_signal_waits_for_no_lock_of_a_run_that_is_suspended(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """What it cannot change is left to the next exchange of any worker."""
    worker = await harness.worker()
    await start_suspended(harness, worker, PAID)
    async with rival.transaction():
        await rival.execute("SELECT FROM nimburion.dependent FOR UPDATE")
        assert await send(harness) is SignalOutcome.STORED
        assert await harness.state(RUN) is State.SUSPENDED
    assert ids(await worker.take(5)) == [RUN]


async def test_a_time_of_a_run_that_another_transaction_has_locked(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    worker = await harness.worker()
    await start_suspended(harness, worker, delay=60.0)
    harness.clock.advance(60.0)
    async with rival.transaction():
        await rival.execute("SELECT FROM nimburion.dependent FOR UPDATE")
        assert await worker.take(5) == []
    assert ids(await worker.take(5)) == [RUN]


async def test_a_cancel_that_a_run_is_sent_while_it_waits_comes_before_its_next_attempt(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """A worker that took the run before the signal is stored would not see it."""
    worker = await harness.worker()
    held = await start(harness, worker)
    await record(worker, held, CLEANUP_STEP)
    await harness.backend.consuming.release(worker.id, [held.lease])
    transaction = rival.transaction()
    await transaction.start()
    await rival.execute(
        "INSERT INTO nimburion.signal (seq, number, at, is_unread, id, name, payload)"
        " SELECT seq, 1, 0, true, '', '', '' FROM nimburion.job"
    )
    cancelling = asyncio.create_task(harness.backend.producing.cancel(RUN))
    await wait_until_blocked(rival, 1)
    assert await worker.take(5) == []
    await transaction.rollback()
    assert await cancelling == "requested"
    assert ids(await worker.take(5)) == [RUN]
    assert await read_signals(harness) == [(CANCEL_SIGNAL, b"")]


@pytest.mark.parametrize("how", ["released", "closed", "rescued", "settled"])
async def test_runs_that_are_released_together_are_locked_in_their_order(
    harness: Harness, rival: asyncpg.Connection, how: str
) -> None:
    """Who sends signals to both locks them so, too. Another order would be a deadlock."""
    consuming = harness.backend.consuming
    worker = await harness.worker(names=("scan", "mail"))
    await harness.add("filler", name="scan")  # its lane is stored first, and jobs end by lane
    await worker.settle(Completed((await worker.take_one()).lease))
    await harness.add("first", name="mail")
    await harness.add("second", name="scan")
    held = {one.lease.job_id: one.lease for one in await worker.take(2)}
    leases = held["second"], held["first"]
    await worker.settle(*(Recorded(lease, CLEANUP_STEP, b"x") for lease in leases))
    for job_id in held:
        assert await harness.backend.producing.cancel(job_id) == "requested"
    transaction = rival.transaction()
    await transaction.start()
    await rival.execute(
        "SELECT FROM nimburion.run WHERE seq = (SELECT min(seq) FROM nimburion.run) FOR UPDATE"
    )
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "released": lambda: consuming.release(worker.id, leases),
        "closed": worker.close,
        "rescued": lambda: harness.lose(worker),
        "settled": lambda: worker.settle(*map(Released, leases)),
    }
    releasing = asyncio.ensure_future(calls[how]())
    await wait_until_blocked(rival, 1)
    free = await rival.fetch("SELECT FROM nimburion.run FOR UPDATE SKIP LOCKED")
    assert len(free) == 2  # also the one of the other run
    await transaction.rollback()
    await releasing
    for job_id in held:
        (signal,) = (await harness.backend.reads.read_run(job_id)).signals
        assert signal.name == CANCEL_SIGNAL


async def test_members_that_are_durable_runs_end_with_their_flow(harness: Harness) -> None:
    """Its failure cancels a suspended run, and asks one that a worker has to end."""
    flow = NewFlow(id="import", name="import file", members=3, fail_fast=True)
    await store(harness, [member("a"), member(RUN), member("other")], flow)
    worker = await harness.worker()
    held = {one.lease.job_id: one for one in await worker.take(3)}
    await record(worker, held[RUN], CLEANUP_STEP)
    await suspend(worker, held[RUN], PAID)
    await suspend(worker, held["other"], delay=60.0)
    await worker.exchange(Failed(held["a"].lease, "permanent", FAILURE))
    await harness.backend.consuming.promote(100)
    assert await harness.state("other") is State.CANCELLED
    assert ids(await worker.take(5)) == [RUN]
    assert await read_signals(harness) == [(CANCEL_SIGNAL, b"")]
    harness.clock.advance(60.0)
    assert await worker.take(5) == []


async def test_what_a_run_waits_for_is_explained(harness: Harness) -> None:
    worker = await harness.worker()
    held = await start(harness, worker)
    await store(harness, [member("a"), member("b")], make_flow(2))
    await suspend(worker, held, PAID, flow_source("import"), delay=60.0)
    await fail(worker, "a")
    facts = await harness.backend.reads.explain_job(RUN)
    time = make_time_source(round((harness.clock.now() + 60.0) * 1e6))
    found = [(one.condition.source, one.condition.on) for one in facts.unmet]
    assert found == [(source, On.ANY) for source in (flow_source("import"), PAID, time)]
    assert [one.flow is not None for one in facts.unmet] == [True, False, False]
    assert facts.unmet_count == 3
    assert facts.unmet[2].condition.source.kind is SourceKind.TIME


async def count_rows(rival: asyncpg.Connection) -> list[int]:
    """Return the number of runs, steps and signals that are stored."""
    return [
        int(await rival.fetchval(f"SELECT count(*) FROM nimburion.{table}"))
        for table in ("run", "step", "signal")
    ]


async def end(worker: HandDrivenWorker, job_id: str, *, steps: int = 5) -> None:
    """Store steps of the run that is enqueued next, and complete it."""
    held = await worker.take_one()
    assert held.lease.job_id == job_id
    recorded = (Recorded(held.lease, number, b"x") for number in range(1, steps + 1))
    await worker.exchange(*recorded, Completed(held.lease))


async def test_steps_and_signals_of_pruned_jobs_are_removed_in_bounded_calls(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """A run that sleeps keeps them."""
    worker = await harness.worker(ttl=10 * DAY)
    held = await start(harness, worker)
    await record(worker, held, 1)
    await suspend(worker, held, PAID)
    for name in ("a", "b"):
        await harness.add(name)
        await end(worker, name, steps=15)
    await send(harness, "other")
    harness.clock.advance(3 * DAY)
    keep = Retention(completed=60.0)
    await harness.backend.maintenance.prune(keep, 1)
    assert await count_rows(rival) == [3, 31, 1]  # the horizon has not passed the second job
    steps = []
    while (await count_rows(rival))[0] > 1:
        await harness.backend.maintenance.prune(keep, 1)
        steps.append((await count_rows(rival))[1])
    assert all(before - after <= 10 for before, after in zip([31, *steps], steps, strict=False))
    assert await count_rows(rival) == [1, 1, 1]
    assert await read_steps(harness) == [(1, b"1")]


@pytest.mark.parametrize("how", ["deleted", "deleted when failed", "pruned when failed", "excess"])
async def test_steps_and_signals_are_removed_after_their_job(
    harness: Harness, rival: asyncpg.Connection, how: str
) -> None:
    worker = await harness.worker(ttl=10 * DAY)
    held = await start(harness, worker)
    await record(worker, held, 1)
    await send(harness)
    has_failed = how.endswith("failed")
    ended = Failed(held.lease, "permanent", FAILURE) if has_failed else Completed(held.lease)
    await worker.exchange(ended)
    maintenance = harness.backend.maintenance
    if how.startswith("deleted"):
        await maintenance.change_jobs(BulkAction.DELETE, [RUN])
    harness.clock.advance(DAY)
    keep = {"excess": Retention(completed_max=0), "pruned when failed": Retention(failed=60.0)}
    await maintenance.prune(keep.get(how, Retention()), 100)
    await maintenance.prune(Retention(), 100)
    assert await count_rows(rival) == [0, 0, 0]


async def test_a_step_in_a_transaction_keeps_its_lease(harness: Harness) -> None:
    """A rescue takes the job after the commit only."""
    worker = await harness.worker()
    held = await start(harness, worker)
    transaction = harness.backend.producing.transaction(None)  # type: ignore[attr-defined]
    await transaction.begin()
    await transaction.settle(worker.id, Recorded(held.lease, 1, b"x"))
    assert await read_steps(harness) == []
    rescued = await harness.lose(worker)
    assert rescued.returned == []
    await transaction.commit()
    assert await read_steps(harness) == [(1, b"x")]
    assert (await harness.lose(worker)).returned == [RUN]
    late = harness.backend.producing.transaction(None)  # type: ignore[attr-defined]
    await late.begin()
    with pytest.raises(LeaseLost):
        await late.settle(worker.id, Recorded(held.lease, 2, b"x"))
    await late.rollback()
    assert await read_steps(harness) == [(1, b"x")]


async def test_a_small_run_comes_with_its_lease(harness: Harness) -> None:
    worker = await harness.worker()
    held = await start(harness, worker)
    for number in (2, 1, CLEANUP_STEP):
        await record(worker, held, number, b"%d\0" % number)
    await suspend(worker, held, PAID)
    await send(harness, "early", key="s0")
    await send(harness)
    held = await worker.take_one()
    assert held.run == await read(harness)
    await record(worker, held, 3, takes=1)
    await worker.settle(Retried(held.lease, 0.0, FAILURE))
    held = await worker.take_one()
    assert held.run == await read(harness)
    await record(worker, held, 4, b"x" * MAX_DELIVERED_RUN)
    await suspend(worker, held, PAID)
    assert (await worker.take_one()).run is None


async def test_a_run_of_many_steps_comes_without_them(harness: Harness) -> None:
    worker = await harness.worker()
    held = await start(harness, worker)
    await worker.exchange(*(Recorded(held.lease, number, b"x") for number in range(100)))
    await worker.settle(Released(held.lease))
    held = await worker.take_one()
    assert held.run == await read(harness)
    await record(worker, held, 100)
    await worker.settle(Released(held.lease))
    assert (await worker.take_one()).run is None


@pytest.mark.parametrize("restriction", ["none", "lane", "key", "cap"])
@pytest.mark.parametrize("names", [("mail",), ("mail", "page")])
async def test_each_way_to_lease_brings_the_run(
    harness: Harness, names: tuple[str, ...], restriction: str
) -> None:
    worker = await harness.worker(
        names=names,
        queues=("default", "other"),
        limits={"mail": 9} if restriction == "lane" else {},
        keyed={"mail": {"customer": LimitRule(9)}} if restriction == "key" else {},
    )
    await harness.enqueue(
        harness.job("first", options=JobOptions(limit_keys={"customer": "a"})),
        harness.job("second", options=JobOptions(limit_keys={"customer": "b"})),
    )
    await harness.add(*(f"page-{n}" for n in range(3)), name=names[-1])
    for held in await worker.take(9):
        if held.lease.job_id in {"first", "second"}:
            await record(worker, held, 1, held.lease.job_id.encode())
        await worker.settle(Retried(held.lease, 0.0, FAILURE))
    await harness.add("new")
    caps = {"default": QueueOptions(limit=9), "other": QueueOptions(limit=9)}
    taken = await worker.take(9, queues=caps if restriction == "cap" else {})
    assert len(taken) == 6
    steps = {held.lease.job_id: held.run.steps[0].body for held in taken if held.run is not None}  # type: ignore[attr-defined]
    assert steps == {"first": b"first", "second": b"second"}
