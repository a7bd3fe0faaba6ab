"""Changes of members of flows that cannot be applied at once, because others hold a lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.flows import MAX_RESOLVED, FlowState, On
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.queries import JobFilter
from nimburion.core.schedules import put_schedule
from nimburion.core.settlement import Completed, Failed
from nimburion.testing import FakeClock
from nimburion.testing.contract.changing import replay
from nimburion.testing.contract.flows.failing_fast import enqueue_failing_fast, read_states
from nimburion.testing.contract.flows.graphs import (
    FLOW,
    after,
    after_flow,
    fail,
    finish,
    list_waiting,
    make_flow,
    make_group,
    member,
    read_counts,
    store,
)
from nimburion.testing.contract.harness import FAILURE, Harness, ids
from nimburion.testing.contract.schedules import NIGHTLY
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

DEADLINE = 30.0


@pytest.fixture
async def harness(clean_postgres: RunningPostgres) -> AsyncIterator[Harness]:
    clock = FakeClock()
    backend = PostgresBackend(clean_postgres.url, clock=clock)
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


async def test_a_replay_stays_behind_a_blocked_failure(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """Else the failure would cancel the dependent of a job that runs again."""
    await store(harness, [member("a"), member("b", after("a"))])
    worker = await harness.worker()
    async with rival.transaction():
        await rival.execute("SELECT FROM nimburion.dependent FOR UPDATE")
        await fail(worker, "a")
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
    await harness.backend.consuming.promote(100)
    assert await harness.state("b") is State.SUSPENDED
    await finish(worker, "a")
    assert await list_waiting(worker) == ["b"]


@pytest.mark.parametrize("table", ["horizon", "finished_job"])
async def test_an_end_stays_behind_a_blocked_replay(
    harness: Harness, rival: asyncpg.Connection, table: str
) -> None:
    """Else the dependent would wait for a job that has ended. No call waits for the other one."""
    await store(harness, [member("a"), member("b", after("a"))])
    worker = await harness.worker()
    await fail(worker, "a")
    async with rival.transaction():
        await rival.execute(f"SELECT FROM nimburion.{table} FOR UPDATE")
        await replay(harness.backend, JobFilter(ids=("a",)), 1)
        await finish(worker, "a")
        assert await harness.state("b") is State.CANCELLED
    await harness.backend.consuming.promote(100)
    assert await list_waiting(worker) == ["b"]


async def test_a_tick_locks_the_unique_key_of_its_job_before_flows(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """An exchange locks them in this order, too."""
    await store(harness, [member("a")])
    await put_schedule(harness.backend, NIGHTLY)
    job = harness.job("tick", options=JobOptions(unique_key="k"))
    await rival.execute(
        "INSERT INTO nimburion.flow_change (root, source_kind, source, change)"
        " SELECT number, 'job', 'a', 'succeeded' FROM nimburion.flow"
    )
    transaction = rival.transaction()
    await transaction.start()
    await rival.execute("SELECT FROM nimburion.flow FOR UPDATE")
    firing = asyncio.create_task(
        harness.backend.producing.fire("nightly", None, 100.0, job, "allow")
    )
    await wait_until(lambda: is_blocked_by(rival), "the tick waits for the flow")
    await rival.execute("SET LOCAL lock_timeout TO '100ms'")
    with pytest.raises(asyncpg.LockNotAvailableError):
        await rival.execute(
            "INSERT INTO nimburion.unique_key (name, key, seq, id) VALUES ('mail', 'k', 0, 'x')"
        )
    await transaction.rollback()
    assert (await firing).outcome == "fired"


async def test_a_failed_flow_waits_for_no_unique_key_that_a_transaction_has_locked(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """A caller's transaction may stay open for long. The other members are cancelled at once."""
    options = JobOptions(flow=FLOW, unique_key="k")
    locked = NewJob("b", "mail", "default", b'{"a":1}', options=options)
    await enqueue_failing_fast(harness, [member("a"), locked, member("c")])
    await fail(await harness.worker(), "a")
    async with rival.transaction():
        await rival.execute("SELECT FROM nimburion.unique_key FOR UPDATE")
        await harness.backend.consuming.promote(100)
        assert await read_states(harness, "b", "c") == [State.PENDING, State.CANCELLED]
        assert not (await harness.backend.consuming.rescue(100, max_lost=3)).more
    await harness.backend.consuming.promote(100)
    assert await harness.state("b") is State.CANCELLED


async def test_a_failed_flow_locks_the_classes_of_tenants_before_their_turns(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """Exchanges do, too, and then change the turns in another order."""
    jobs = [
        NewJob(name, "mail", "default", b"{}", options=JobOptions(flow=FLOW, tenant=name))
        for name in ("x", "y")
    ]
    await enqueue_failing_fast(harness, [member("a"), *jobs])
    await fail(await harness.worker(), "a")

    async def promote_until_cancelled() -> None:
        while await read_states(harness, "x", "y") != 2 * [State.CANCELLED]:
            await harness.backend.consuming.promote(100)

    transaction = rival.transaction()
    await transaction.start()
    await rival.execute("SELECT FROM nimburion.share_class FOR UPDATE")
    promoting = asyncio.create_task(promote_until_cancelled())
    await wait_until(lambda: is_blocked_by(rival), "the cancel waits for the classes")
    assert await rival.fetch("SELECT FROM nimburion.tenant_turn FOR UPDATE NOWAIT")
    await transaction.rollback()
    await promoting


async def test_a_failed_flow_does_not_wait_for_long_for_a_member(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """Exchanges would wait for what the call has locked before. A later call cancels the member."""
    await enqueue_failing_fast(harness, [member("a"), member("b"), member("c")])
    await fail(await harness.worker(), "a")
    async with rival.transaction():
        await rival.execute("SELECT FROM nimburion.job WHERE id = 'b' FOR UPDATE")
        await harness.backend.consuming.promote(100)
        assert not (await harness.backend.consuming.rescue(100, max_lost=3)).more
        assert await harness.state("b") is State.PENDING
    await harness.backend.consuming.promote(100)
    assert await read_states(harness, "b", "c") == 2 * [State.CANCELLED]


@pytest.mark.parametrize("is_first", [True, False])
async def test_a_replay_and_a_failure_of_one_flow_keep_their_order(
    harness: Harness, rival: asyncpg.Connection, *, is_first: bool
) -> None:
    """The failure cancels what the replay before it let wait, and not what a later one does."""
    await enqueue_failing_fast(harness, [member("a"), member("b"), member("c")])
    worker = await harness.worker()
    first, _ = await worker.take(2)
    await worker.settle(Failed(first.lease, "permanent", FAILURE))
    await harness.backend.consuming.promote(100)
    assert await harness.state("c") is State.CANCELLED
    insert = (
        "INSERT INTO nimburion.flow_change (flow, root, source_kind, source, change, outcome)"
        " SELECT number, number, 'job', 'b', 'failed', 'failed' FROM nimburion.flow"
    )
    async with rival.transaction():
        await rival.execute("SELECT FROM nimburion.flow FOR UPDATE")
        if is_first:
            await rival.execute(insert)
        replaying = asyncio.create_task(replay(harness.backend, JobFilter(ids=("a",)), 1))
        await wait_until(lambda: is_blocked_by(rival), "the replay waits for the flow")
        if not is_first:
            await rival.execute(insert)
    await replaying
    for _ in range(3):
        await harness.backend.consuming.promote(100)
    assert await harness.state("c") is (State.PENDING if is_first else State.CANCELLED)


async def test_a_backlog_of_scheduled_jobs_is_found_beside_one_of_changes(harness: Harness) -> None:
    """An exchange that leaves changes says that jobs were due before, too. Else its connection
    passes them by for a minute.
    """
    waiting = [member(f"w{number}", after("a")) for number in range(2 * MAX_RESOLVED + 100)]
    await store(harness, [member("a"), *waiting])
    scheduled = [harness.job(f"s{number}", after=1.0) for number in range(2_500)]
    await harness.enqueue(*scheduled)
    worker = await harness.worker()
    held = await worker.take_one()
    harness.clock.advance(5.0)
    await worker.exchange(Completed(held.lease))
    found: set[str] = set()
    for _ in range(10):
        found.update(ids(await worker.take(1_000)))
    assert len(found) == len(waiting) + len(scheduled)


async def test_a_flow_does_not_end_while_a_replay_and_an_end_are_counted(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """One call counts that a member of a group runs again, and that the last other member ended."""
    part, last = member("parts.0", group="parts"), member("last")
    always = member("always", after_flow(FLOW, On.FINISHED), group="")
    await store(harness, [part, last, always], make_flow(2), make_group("parts", 1))
    worker = await harness.worker()
    await fail(worker, "parts.0")
    (delivery,) = await worker.take(10)
    # The first transaction of a replay: another one continues the flows.
    await rival.fetch("SELECT * FROM nimburion.replay_jobs_1($1, $2)", 10**18, [b"parts.0"])
    await worker.settle(Completed(delivery.lease))
    await harness.backend.consuming.promote(100)
    assert (await read_counts(harness))[:2] == (FlowState.RUNNING, 1)
    assert await harness.state("always") is State.SUSPENDED


async def test_an_end_stays_behind_a_replay_that_no_flow_has_counted(
    harness: Harness, rival: asyncpg.Connection
) -> None:
    """Else the flow would end although a member runs again. One call takes 2,000 changes."""
    always = member("always", after_flow(FLOW, On.FINISHED), group="")
    await store(harness, [member("a"), member("b"), always], make_flow(2))
    worker = await harness.worker()
    await fail(worker, "a")
    (delivery,) = await worker.take(10)
    await rival.execute(
        "INSERT INTO nimburion.flow_change (root, source_kind, source, change)"
        " SELECT f.number, 'job', convert_to(n::text, 'UTF8'), 'succeeded'"
        " FROM nimburion.flow f, generate_series(1, 6000) n"
    )
    await rival.fetch("SELECT * FROM nimburion.replay_jobs_1($1, $2)", 10**18, [b"a"])
    await worker.settle(Completed(delivery.lease))
    assert await harness.state("always") is State.SUSPENDED
    for _ in range(4):
        await harness.backend.consuming.promote(100)
    assert (await read_counts(harness))[:2] == (FlowState.RUNNING, 1)
    assert await harness.state("always") is State.SUSPENDED


async def is_blocked_by(rival: asyncpg.Connection) -> bool:
    """Return whether a session waits for a lock of this one."""
    query = (
        "SELECT EXISTS (SELECT FROM pg_stat_activity"
        " WHERE pg_backend_pid() = ANY (pg_blocking_pids(pid)))"
    )
    return bool(await rival.fetchval(query))
