"""Calls of other programs and workers while a caller's transaction stays open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.bulk_operations import (
    BulkAction,
    BulkStep,
    NewBulkOperation,
    claim_bulk_operation,
    run_bulk_step,
    start_bulk_operation,
)
from nimburion.core.errors import BackendUnavailable, EnqueueBlocked, JobNotFound
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import Enqueued, JobOptions, NewJob, State
from nimburion.core.maintenance import Cancellation, Retention
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Released
from nimburion.core.transactions import CallerConnection
from nimburion.jobs import Context, Processor, Unique
from nimburion.testing.contract.harness import make_limits
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until

DEADLINE = 30.0
KEY = JobOptions(unique_key="k")
EXISTING = Unique(on_duplicate="existing")
LEVELS = ["read_committed", "repeatable_read", "serializable"]


@pytest.fixture
async def backend(clean_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def connection(clean_postgres: RunningPostgres) -> AsyncIterator[asyncpg.Connection]:
    """The application's own."""
    made = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    yield made
    await made.close()


def begin(connection: asyncpg.Connection) -> Any:
    """Return a transaction of the usual level, whatever the default of the server."""
    return connection.transaction(isolation="read_committed")


def make(job_id: str, options: JobOptions = KEY) -> NewJob:
    return NewJob(job_id, "n", "q", b"{}", options=options)


@pytest.mark.parametrize("what", ["key", "id", "id of a plain job"])
async def test_an_enqueue_gives_up_soon_and_changes_nothing(
    backend: PostgresBackend, connection: asyncpg.Connection, what: str
) -> None:
    options = JobOptions() if what == "id of a plain job" else KEY
    blocked = make("b" if what == "key" else "a", options)
    async with asyncio.timeout(DEADLINE), begin(connection):
        await backend.producing.enqueue_in(CallerConnection(connection), [make("a", options)])
        with pytest.raises(EnqueueBlocked, match="still open") as refused:
            await backend.producing.enqueue([make("c", JobOptions(tenant="t")), blocked])
        with pytest.raises(EnqueueBlocked):
            await backend.producing.enqueue([blocked])
    assert refused.value.outcome == "not applied"
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1
    (found,) = await backend.producing.enqueue([make("c", JobOptions(tenant="t"))])
    assert found == Enqueued("c", "created")


async def test_a_blocked_enqueue_delays_no_other_that_was_collected_with_it(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The processor sends all of them in one call, and the blocked one until the commit."""
    async with Processor(backend, enqueue_timeout=DEADLINE) as processor, asyncio.timeout(DEADLINE):
        async with begin(connection):
            open_key: dict[str, Any] = {"unique_key": "k", "unique": EXISTING}
            first = await processor.enqueue_raw("n", b"{}", connection=connection, **open_key)
            blocked = [
                asyncio.create_task(processor.enqueue_raw("n", b"{}", **open_key)) for _ in range(3)
            ]
            others = [
                asyncio.create_task(processor.enqueue_raw("n", b"{}", unique_key=key))
                for key in (None, "l", None, "m", None)
            ]
            await asyncio.gather(*others)
            later = await asyncio.gather(
                *(processor.enqueue_raw("n", b"{}") for _ in range(3)),
                processor.enqueue_many([]),
            )
            assert len(later) == 4
            assert not any(task.done() for task in blocked)
        assert await asyncio.gather(*blocked) == [first] * 3


async def test_blocked_enqueues_leave_connections_for_other_calls(
    clean_postgres: RunningPostgres, backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """One waits as a first try, and one as a repetition."""
    keys = [f"k{number}" for number in range(8)]
    waiting: list[int] = []
    async with Processor(backend, enqueue_timeout=DEADLINE) as processor, asyncio.timeout(DEADLINE):
        async with begin(connection):
            for key in keys:
                await processor.enqueue_raw("n", b"{}", connection=connection, unique_key=key)
            blocked = [
                asyncio.create_task(
                    processor.enqueue_raw("n", b"{}", unique_key=key, unique=EXISTING)
                )
                for key in keys
            ]
            await wait_until(lambda: count_waiting(clean_postgres) > 0, "one waits")
            for _ in range(20):
                waiting.append(count_waiting(clean_postgres))
                await processor.enqueue_raw("n", b"{}")
                await processor.pending_count()
        await asyncio.gather(*blocked)
    assert max(waiting) <= 2


async def test_an_enqueue_that_stays_blocked_is_refused_with_its_reason(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    async with Processor(backend, enqueue_timeout=0.5) as processor, begin(connection):
        await processor.enqueue_raw("n", b"{}", connection=connection, unique_key="k")
        with pytest.raises(BackendUnavailable, match=r"still open.*was not stored") as refused:
            await processor.enqueue_raw("n", b"{}", unique_key="k")
        assert refused.value.outcome == "not applied"


async def test_one_of_many_callers_may_give_up(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    async with Processor(backend, enqueue_timeout=DEADLINE) as processor:
        async with begin(connection):
            await processor.enqueue_raw("n", b"{}", connection=connection, unique_key="k")
            tasks = [
                asyncio.create_task(processor.enqueue_raw("n", b"{}", unique_key="k"))
                for _ in range(2)
            ]
            await asyncio.wait_for(processor.enqueue_raw("n", b"{}"), DEADLINE)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=DEADLINE)
            assert all(task.cancelled() for task in tasks)
        await asyncio.wait_for(processor.enqueue_raw("n", b"{}"), DEADLINE)
        assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 3


@pytest.mark.parametrize("level", LEVELS)
async def test_a_job_that_is_overdue_already_delays_no_exchange(
    backend: PostgresBackend, connection: asyncpg.Connection, level: Any
) -> None:
    """It waits in the late lane, to which released jobs return too."""
    await backend.consuming.open_session(Session(id="5e" * 16, ttl=60.0, names=("n",)))
    await backend.producing.enqueue([make("a", JobOptions())])
    request = ReserveRequest(1, (Lane("q", "n"),))
    (delivery,) = (await backend.consuming.exchange("5e" * 16, 1, [], request)).deliveries
    overdue = NewJob("b", "n", "q", b"{}", at=1.0)
    transaction = connection.transaction(isolation=level)
    await transaction.start()
    if level == "read_committed":
        await backend.producing.enqueue_in(CallerConnection(connection), [overdue])
    else:
        await connection.execute("SELECT FROM nimburion.lane")
        with pytest.raises(BackendUnavailable, match="run all of it again"):
            await backend.producing.enqueue_in(CallerConnection(connection), [overdue])
    async with asyncio.timeout(DEADLINE):
        reply = await backend.consuming.exchange("5e" * 16, 2, [Released(delivery.lease)], request)
    assert [one.lease.job_id for one in reply.deliveries] == ["a"]
    await transaction.rollback()
    async with connection.transaction(isolation=level):
        await backend.producing.enqueue_in(CallerConnection(connection), [overdue])
    assert (await backend.reads.get_job("b")).state is State.PENDING


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("options", [KEY, JobOptions(tenant="t")], ids=["key", "tenant"])
async def test_any_isolation_delays_no_worker(
    backend: PostgresBackend, connection: asyncpg.Connection, level: Any, options: JobOptions
) -> None:
    await backend.consuming.open_session(Session(id="5e" * 16, ttl=60.0, names=("n",)))
    await backend.producing.enqueue([make("a", options)])
    request = ReserveRequest(1, (Lane("q", "n"),))
    (delivery,) = (await backend.consuming.exchange("5e" * 16, 1, [], request)).deliveries
    async with asyncio.timeout(DEADLINE), connection.transaction(isolation=level):
        await backend.producing.enqueue_in(CallerConnection(connection), [make("b", options)])
        await backend.consuming.exchange("5e" * 16, 2, [Released(delivery.lease)], request)
    assert (await backend.reads.get_job("a")).state is State.PROCESSING


async def test_a_worker_that_stops_before_its_commit_is_disconnected(
    backend: PostgresBackend,
) -> None:
    """Its job is completed, but not committed: others of the same limit wait for it."""
    limited = Session(id="5e" * 16, ttl=60.0, names=("n",), limits=make_limits({"n": 2}))
    await backend.consuming.open_session(limited)
    await backend.producing.enqueue([make("a"), make("b", JobOptions())])
    request = ReserveRequest(1, (Lane("q", "n"),))
    (delivery,) = (await backend.consuming.exchange(limited.id, 1, [], request)).deliveries
    transaction = backend.producing.transaction(None)
    connection: Any = await transaction.begin()
    await transaction.settle(limited.id, Completed(delivery.lease))
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "5s"
    await connection.execute("SET LOCAL idle_in_transaction_session_timeout TO '50ms'")
    async with asyncio.timeout(DEADLINE):
        reply = await backend.consuming.exchange(limited.id, 2, [], request)
    assert [one.lease.job_id for one in reply.deliveries] == ["b"]
    with pytest.raises(BackendUnavailable):
        await transaction.commit()
    assert (await backend.reads.get_job("a")).state is State.PROCESSING


async def test_prune_deletes_the_keys_that_could_not_be_released(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """A key that the transaction has locked stays until then, and one that a new job holds."""
    await backend.consuming.open_session(Session(id="5e" * 16, ttl=60.0, names=("n",)))
    keys = [JobOptions(unique_key=key, on_duplicate="existing") for key in "kl"]
    await backend.producing.enqueue([make("a", keys[0]), make("b", keys[1])])
    reply = await backend.consuming.exchange("5e" * 16, 1, [], ReserveRequest(2, (Lane("q", "n"),)))
    async with asyncio.timeout(DEADLINE), begin(connection):
        await backend.producing.enqueue_in(
            CallerConnection(connection), [make("c", keys[0]), make("d", keys[1])]
        )
        ended = [Completed(delivery.lease) for delivery in reply.deliveries]
        await backend.consuming.exchange("5e" * 16, 2, ended, ReserveRequest(0, ()))
        await backend.maintenance.prune(Retention(), 9)
        kept = await connection.fetchval("SELECT count(*) FROM nimburion.unreleased_key")
        assert kept == 2
        await backend.producing.enqueue_in(CallerConnection(connection), [make("e", keys[1])])
    await backend.maintenance.prune(Retention(), 9)
    rows = await connection.fetch("SELECT id FROM nimburion.unique_key")
    assert [bytes(row["id"]) for row in rows] == [b"e"]
    assert await connection.fetchval("SELECT count(*) FROM nimburion.unreleased_key") == 0


@pytest.mark.parametrize("options", [JobOptions(), KEY])
async def test_a_lock_that_an_enqueue_did_not_wait_for_is_not_called_blocked(
    clean_postgres: RunningPostgres,
    backend: PostgresBackend,
    connection: asyncpg.Connection,
    options: JobOptions,
) -> None:
    """A trigger of the application fails at once: the client does not repeat it as blocked."""
    await connection.execute(
        "CREATE TABLE public.guarded (n int); INSERT INTO public.guarded VALUES (1);"
        "CREATE FUNCTION public.lock_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM FROM public.guarded FOR UPDATE NOWAIT; RETURN NULL; END $$;"
        "CREATE TRIGGER lock_for_test BEFORE INSERT ON nimburion.job"
        " EXECUTE FUNCTION public.lock_for_test();"
    )
    try:
        async with begin(connection):
            await connection.execute("SELECT FROM public.guarded FOR UPDATE")
            with pytest.raises(BackendUnavailable, match="could not obtain lock") as refused:
                await backend.producing.enqueue([make("a", options)])
        assert not isinstance(refused.value, EnqueueBlocked)
        assert refused.value.outcome == "not applied"
    finally:
        await connection.execute(
            "DROP TRIGGER lock_for_test ON nimburion.job;"
            "DROP FUNCTION public.lock_for_test(); DROP TABLE public.guarded"
        )


async def test_a_turn_that_was_added_is_kept_for_a_job_that_comes_meanwhile(
    clean_postgres: RunningPostgres, backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The exchange has found the lane of an added turn empty, and is about to delete the turn."""
    tenant = JobOptions(tenant="t")
    await backend.consuming.open_session(Session(id="5e" * 16, ttl=60.0, names=("n",)))
    await backend.producing.enqueue([make("a", tenant)])
    await connection.execute("DELETE FROM nimburion.ready")  # the added turn stays
    await connection.execute(
        "CREATE FUNCTION public.wait_for_test() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;"
        "CREATE TRIGGER wait_for_test BEFORE INSERT ON nimburion.tenant_turn"
        " EXECUTE FUNCTION public.wait_for_test();"
    )
    try:
        async with begin(connection):
            await connection.execute("SELECT pg_advisory_xact_lock(1)")
            taking = asyncio.create_task(
                backend.consuming.exchange("5e" * 16, 1, [], ReserveRequest(1, (Lane("q", "n"),)))
            )
            await wait_until(lambda: count_waiting(clean_postgres) == 1, "the exchange merges")
            await backend.producing.enqueue([make("b", tenant)])
    finally:
        await connection.execute(
            "DROP TRIGGER wait_for_test ON nimburion.tenant_turn;"
            "DROP FUNCTION public.wait_for_test()"
        )
    async with asyncio.timeout(DEADLINE):
        deliveries = (await taking).deliveries or (
            await backend.consuming.exchange("5e" * 16, 2, [], ReserveRequest(1, (Lane("q", "n"),)))
        ).deliveries
    assert [one.lease.job_id for one in deliveries] == ["b"]


def count_waiting(server: RunningPostgres) -> int:
    """Return how many locks are waited for."""
    ((count,),) = server.ask("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return int(count)


async def test_an_enqueue_that_waited_for_the_same_id_finds_it(
    backend: PostgresBackend, connection: asyncpg.Connection, clean_postgres: RunningPostgres
) -> None:
    function = "ALTER FUNCTION nimburion.enqueue_one_1 SET lock_timeout TO"
    await backend.producing.enqueue([make("other", JobOptions())])
    clean_postgres.ask(f"{function} '{DEADLINE}s'")
    try:
        async with asyncio.timeout(DEADLINE):
            async with begin(connection):
                await backend.producing.enqueue_in(
                    CallerConnection(connection), [make("a", JobOptions())]
                )
                waiting = asyncio.create_task(backend.producing.enqueue([make("a", JobOptions())]))
                await wait_until(lambda: count_waiting(clean_postgres) == 1, "it waits")
            assert await waiting == [Enqueued("a", "exists")]
    finally:
        clean_postgres.ask(f"{function} '200ms'")


async def test_a_bulk_operation_gives_up_soon(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """An exchange may wait for what the step has locked, so the step must not wait for long."""
    await backend.producing.enqueue([make("a")])
    await start_bulk_operation(backend, NewBulkOperation(id="op", action=BulkAction.CANCEL))
    claimed = await claim_bulk_operation(backend, 60.0)
    async with asyncio.timeout(DEADLINE):
        async with begin(connection):
            existing = JobOptions(unique_key="k", on_duplicate="existing")
            await backend.producing.enqueue_in(CallerConnection(connection), [make("b", existing)])
            with pytest.raises(BackendUnavailable) as refused:
                await run_bulk_step(backend, claimed, BulkStep(ids=("a",)))
        assert refused.value.outcome == "not applied"
        done = await run_bulk_step(backend, claimed, BulkStep(ids=("a",)))
    assert done.done == 1


async def test_a_completion_that_is_not_committed_delays_no_other_call(
    backend: PostgresBackend,
) -> None:
    options = JobOptions(unique_key="k", tenant="t")
    await backend.consuming.open_session(
        Session(id="5e" * 16, ttl=60.0, names=("n",), limits=make_limits({"n": 2}))
    )
    await backend.producing.enqueue([make("a", options), make("b", JobOptions(tenant="t"))])
    request = ReserveRequest(1, (Lane("q", "n"),))
    (delivery,) = (await backend.consuming.exchange("5e" * 16, 1, [], request)).deliveries
    transaction = backend.producing.transaction(None)
    await transaction.begin()
    await transaction.settle("5e" * 16, Completed(delivery.lease))
    async with asyncio.timeout(DEADLINE):
        await backend.consuming.heartbeat("5e" * 16)
        await backend.consuming.promote(9)
        assert (await backend.reads.get_job("a")).state is State.PROCESSING
        assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1
        await backend.reads.list_tenants()
        await backend.producing.enqueue([make("c", JobOptions(tenant="t"))])
        for same in (make("a", options), make("d", options)):
            with pytest.raises(EnqueueBlocked):
                await backend.producing.enqueue([same])
        await transaction.commit()
    (found,) = await backend.producing.enqueue([make("d", options)])
    assert found == Enqueued("d", "created")


async def test_two_callers_with_one_key_make_one_job(
    clean_postgres: RunningPostgres, backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The second waits for the first to commit, and then finds its job."""
    options = JobOptions(unique_key="k", on_duplicate="existing")
    other = await asyncpg.connect(clean_postgres.url, statement_cache_size=0)
    async with asyncio.timeout(DEADLINE), begin(other):
        async with begin(connection):
            await backend.producing.enqueue_in(CallerConnection(connection), [make("a", options)])
            waiting = asyncio.create_task(
                backend.producing.enqueue_in(CallerConnection(other), [make("b", options)])
            )
            await wait_until(lambda: count_waiting(clean_postgres) == 1, "the other waits")
        assert await waiting == [Enqueued("a", "exists")]
    await other.close()


async def test_an_operator_waits_only_for_a_job_with_a_key(
    clean_postgres: RunningPostgres, backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    hasty = PostgresBackend(clean_postgres.url, timeout=0.5)
    await hasty.open()
    existing = JobOptions(unique_key="k", on_duplicate="existing")
    await backend.producing.enqueue([make("a", existing), make("b", JobOptions(tenant="t"))])
    await start_bulk_operation(backend, NewBulkOperation(id="op", action=BulkAction.CANCEL))
    async with asyncio.timeout(DEADLINE), begin(connection):
        await backend.producing.enqueue_in(
            CallerConnection(connection), [make("d", existing), make("e", JobOptions(tenant="t"))]
        )
        assert await hasty.producing.cancel("b") is Cancellation.CANCELLED
        with pytest.raises(JobNotFound):
            await hasty.producing.cancel("e")
        claimed = await claim_bulk_operation(backend, 60.0)
        await run_bulk_step(backend, claimed, BulkStep(ids=("e", "b")))
        with pytest.raises(BackendUnavailable) as refused:
            await hasty.producing.cancel("a")
        assert refused.value.outcome == "unknown"
    await hasty.close()


async def test_a_worker_goes_on_and_rescues_while_a_transaction_is_open(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The transaction has found the keys of its running jobs and of those of a dead worker."""
    dead = Session(id="5e" * 16, ttl=1.0, names=("n",))
    await backend.consuming.open_session(dead)
    keys = [JobOptions(unique_key=key, on_duplicate="existing", tenant="t") for key in "kl"]
    await backend.producing.enqueue([make("lost", keys[0])])
    await backend.consuming.exchange(dead.id, 1, [], ReserveRequest(1, (Lane("q", "n"),)))
    started, proceed = asyncio.Event(), asyncio.Event()

    async def handle(_: Context, __: bytes) -> None:
        started.set()
        await proceed.wait()

    processor = Processor(backend.new_handle(), session_ttl=2.0)
    processor.register("n", handle, queue="q")
    async with processor, asyncio.timeout(DEADLINE):
        await processor.start()
        await backend.producing.enqueue([make("running", keys[1])])
        await started.wait()
        async with begin(connection):
            await backend.producing.enqueue_in(
                CallerConnection(connection), [make("a", keys[0]), make("b", keys[1])]
            )
            proceed.set()
            for job_id in ("running", "lost"):
                await processor.wait(job_id, timeout=DEADLINE)
        await processor.stop()
    lost, running = [await backend.reads.get_job(job_id) for job_id in ("lost", "running")]
    assert (lost.lost, running.lost, running.failures) == (1, 0, 0)
