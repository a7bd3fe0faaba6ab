"""Transactions of callers and handlers on PostgreSQL, where something is odd or goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from typing import Any

import asyncpg
import psycopg
import pytest
import sqlalchemy

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.errors import (
    BackendReadOnly,
    BackendUnavailable,
    Unstorable,
    UnusableConnection,
)
from nimburion.core.job import AttemptError, JobOptions, NewJob, State
from nimburion.core.transactions import CallerConnection
from nimburion.jobs import Context, Processor, Unique
from tests.servers.server_kinds import RunningPostgres

DEADLINE = 30.0
ROW = "INSERT INTO account VALUES (1)"
JOB = NewJob("a", "n", "q", b"{}")


@pytest.fixture
def server(clean_postgres: RunningPostgres) -> RunningPostgres:
    """A server whose database has a table of the application."""
    clean_postgres.ask(
        "DROP TABLE IF EXISTS account; CREATE TABLE account (n int)",
        database=clean_postgres.database,
    )
    return clean_postgres


@pytest.fixture
async def backend(server: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(server.url)
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def processor(backend: PostgresBackend) -> AsyncIterator[Processor]:
    async with Processor(backend, max_retries=0, retry_backoff=0.0) as made:
        yield made


@pytest.fixture
async def connection(server: RunningPostgres) -> AsyncIterator[asyncpg.Connection]:
    """The application's own."""
    made = await asyncpg.connect(server.url, statement_cache_size=0)
    yield made
    await made.close()


def rows(server: RunningPostgres) -> int:
    """How many rows everybody can see."""
    ((count,),) = server.ask("SELECT count(*) FROM account", database=server.database)
    return int(count)


async def run(processor: Processor, handler: Callable[..., Any]) -> Any:
    """Run one job with this handler; its status."""
    processor.register("pay", handler)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await asyncio.wait_for(processor.process_one(), DEADLINE)
    return await processor.get_status(job_id)


# Callers


async def test_statements_that_commit_each_are_refused(
    backend: PostgresBackend, server: RunningPostgres, connection: asyncpg.Connection
) -> None:
    with pytest.raises(UnusableConnection, match="no transaction is open"):
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    with (
        closing(psycopg.connect(server.url, autocommit=True)) as blocking,
        pytest.raises(UnusableConnection, match="no transaction is open"),
    ):
        await backend.producing.enqueue_in(CallerConnection(blocking), [JOB])
    async with await psycopg.AsyncConnection.connect(server.url, autocommit=True) as other:
        with pytest.raises(UnusableConnection, match="no transaction is open"):
            await backend.producing.enqueue_in(CallerConnection(other), [JOB])
    engine = sqlalchemy.create_engine(
        server.url.replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with (
        engine.connect() as outer,
        pytest.raises(UnusableConnection, match="no transaction is open"),
    ):
        await backend.producing.enqueue_in(CallerConnection(outer), [JOB])
    engine.dispose()
    assert sum((await backend.reads.count_jobs(budget=None)).values()) == 0


async def test_every_field_travels(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    options = JobOptions(
        headers={"ümlaut": '"\\\x01'}, tenant="acme", unique_key="k", unique_for=60.0, timeout=1.5
    )
    jobs = [
        NewJob("a", "n", "q", b"\x00\xff" * 1000, 9, after=10.0, options=options),
        NewJob("b", "n", "p", b"", 0, at=1_000.5),
        NewJob("01a213ed-8d95-7d4e-a620-53f692792fd7", "m", "q", b"[]"),
    ]
    async with connection.transaction():
        results = await backend.producing.enqueue_in(CallerConnection(connection), jobs)
    assert {one.outcome for one in results} == {"created"}
    first, second, third = [await backend.reads.get_job(job.id) for job in jobs]
    assert (first.payload, first.options, first.priority) == (jobs[0].payload, options, 9)
    assert first.due - first.created_at == pytest.approx(10.0, abs=1e-5)
    assert (second.payload, second.due, second.queue) == (b"", 1_000.5, "p")
    assert (third.name, third.payload) == ("m", b"[]")


@pytest.mark.parametrize("at", [None, 1.0])
async def test_the_first_job_of_a_lane_blocks_no_other_transaction(
    backend: PostgresBackend, connection: asyncpg.Connection, at: float | None
) -> None:
    """What stands for queue and name is made beside the caller's transaction, not in it."""
    async with asyncio.timeout(DEADLINE):
        await connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "new", "q", b"{}", at=at)]
        )
        await backend.producing.enqueue([NewJob("b", "new", "q", b"{}", at=at)])
        other = await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("c", "new", "q", b"{}")]
        )
        assert [one.outcome for one in other] == ["created"]
        await connection.execute("ROLLBACK")
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1
    assert (await backend.reads.get_job("b")).name == "new"


@pytest.mark.parametrize("level", ["repeatable_read", "serializable"])
async def test_a_name_that_came_after_its_snapshot_is_no_hindrance(
    backend: PostgresBackend, connection: asyncpg.Connection, level: Any
) -> None:
    async with connection.transaction(isolation=level):
        await connection.execute(ROW)
        results = await backend.producing.enqueue_in(
            CallerConnection(connection), [NewJob("a", "new", "q", b"{}")]
        )
    assert [one.outcome for one in results] == ["created"]


@pytest.mark.parametrize("level", ["read_committed", "repeatable_read"])
async def test_a_job_that_waits_for_more_starts_after_the_commit(
    processor: Processor, connection: asyncpg.Connection, level: Any
) -> None:
    """It sees what the transaction wrote before the enqueue that found the job waiting."""
    seen: list[bytes] = []
    processor.register("n", lambda _, data: seen.append(data))
    waiting = Unique(while_="waiting")
    first = await processor.enqueue_raw("n", b"1", unique_key="k", unique=waiting)
    async with connection.transaction(isolation=level):
        await connection.execute(ROW)
        existing = await processor.enqueue_raw(
            "n",
            b"2",
            connection=connection,
            unique_key="k",
            unique=replace(waiting, on_duplicate="existing"),
        )
        assert existing == first
        assert not await asyncio.wait_for(processor.process_one(), DEADLINE)
    async with connection.transaction(isolation=level):
        await processor.enqueue_raw(
            "n",
            b"3",
            connection=connection,
            unique_key="k",
            unique=replace(waiting, on_duplicate="replace"),
        )
        assert not await asyncio.wait_for(processor.process_one(), DEADLINE)
    assert await asyncio.wait_for(processor.process_one(), DEADLINE)
    assert seen == [b"3"]


async def test_a_worker_that_runs_until_empty_waits_for_no_transaction(
    processor: Processor, connection: asyncpg.Connection
) -> None:
    processor.register("n", lambda _, __: None)
    waiting = Unique(while_="waiting")
    first = await processor.enqueue_raw("n", b"1", unique_key="k", unique=waiting)
    async with connection.transaction():
        await processor.enqueue_raw(
            "n",
            b"2",
            connection=connection,
            unique_key="k",
            unique=replace(waiting, on_duplicate="existing"),
        )
        await asyncio.wait_for(processor.run(signals=False, until_empty=True), DEADLINE)
    assert (await processor.get_status(first)).state is State.PENDING


@pytest.mark.parametrize("level", ["read_committed", "repeatable_read", "serializable"])
async def test_any_isolation_will_do(
    backend: PostgresBackend, connection: asyncpg.Connection, level: Any
) -> None:
    await backend.producing.enqueue([NewJob("first", "n", "q", b"{}")])
    async with connection.transaction(isolation=level):
        await connection.execute(ROW)
        await backend.producing.enqueue([NewJob("other", "n", "q", b"{}")])
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 3


async def test_what_cannot_be_serialized_is_to_be_run_again(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    """The other has made the line of these jobs since this transaction began to see."""
    transaction = connection.transaction(isolation="repeatable_read")
    await transaction.start()
    await connection.execute(ROW)
    await backend.producing.enqueue([NewJob("other", "n", "q", b"{}")])
    with pytest.raises(BackendUnavailable, match="run all of it again") as unavailable:
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    await transaction.rollback()
    assert unavailable.value.outcome == "not applied"
    async with connection.transaction(isolation="repeatable_read"):
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 2


async def test_unstorable_jobs_are_rejected_before_they_are_sent(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    async with connection.transaction():
        with pytest.raises(Unstorable):
            await backend.producing.enqueue_in(
                CallerConnection(connection), [NewJob("a", "n\0", "q", b"{}")]
            )
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1


async def test_a_failed_transaction_is_rejected(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    transaction = connection.transaction()
    await transaction.start()
    with pytest.raises(asyncpg.UndefinedTableError):
        await connection.execute("SELECT * FROM nowhere")
    with pytest.raises(UnusableConnection, match="roll it back first"):
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    await transaction.rollback()


async def test_a_read_only_transaction_is_rejected(
    backend: PostgresBackend, connection: asyncpg.Connection
) -> None:
    with pytest.raises(BackendReadOnly):
        async with connection.transaction(readonly=True):
            await backend.producing.enqueue_in(CallerConnection(connection), [JOB])


async def test_a_database_without_our_schema_is_rejected(
    backend: PostgresBackend, server: RunningPostgres
) -> None:
    with (
        closing(psycopg.connect(server.url_for("postgres", database="postgres"))) as elsewhere,
        pytest.raises(UnusableConnection, match="one commit cannot cover both"),
    ):
        await backend.producing.enqueue_in(CallerConnection(elsewhere), [JOB])


async def test_a_connection_to_another_schema_is_rejected(
    backend: PostgresBackend, tmp_path: Any, connection: asyncpg.Connection
) -> None:
    other = SQLiteBackend(tmp_path / "jobs.db")
    await other.open()
    async with connection.transaction():
        with pytest.raises(UnusableConnection, match="no connection to this backend: SQLite"):
            await other.producing.enqueue_in(CallerConnection(connection), [JOB])
    await other.close()


async def test_a_role_without_privileges_is_rejected(
    backend: PostgresBackend, server: RunningPostgres
) -> None:
    role = f"guest_{server.database}"
    server.ask(f'CREATE ROLE "{role}"', database=server.database)
    with closing(psycopg.connect(server.url)) as connection:
        server.ask(f'GRANT "{role}" TO "{connection.info.user}"', database=server.database)
        connection.execute(f'SET ROLE "{role}"'.encode())
        with pytest.raises(UnusableConnection, match="nimburion migrate up --grant"):
            await backend.producing.enqueue_in(CallerConnection(connection), [JOB])


async def test_two_callers_with_one_id_make_one_job(
    backend: PostgresBackend, server: RunningPostgres, connection: asyncpg.Connection
) -> None:
    """The second waits for the first to commit, and then finds its job."""
    other = await asyncpg.connect(server.url, statement_cache_size=0)
    first, second = (one.transaction(isolation="read_committed") for one in (connection, other))
    await first.start()
    await second.start()
    await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    waiting = asyncio.create_task(backend.producing.enqueue_in(CallerConnection(other), [JOB]))
    await asyncio.sleep(0)
    await first.commit()
    ((result,),) = (await asyncio.wait_for(waiting, DEADLINE),)
    await second.commit()
    await other.close()
    assert result.outcome == "exists"
    assert (await backend.reads.count_jobs(budget=None))[State.PENDING] == 1


async def test_a_killed_connection_means_that_nothing_was_applied(
    backend: PostgresBackend, server: RunningPostgres, connection: asyncpg.Connection
) -> None:
    await connection.execute("BEGIN")
    await connection.execute(ROW)
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    server.ask("SELECT pg_terminate_backend(%s)", [pid])
    with pytest.raises(BackendUnavailable) as gone:
        await backend.producing.enqueue_in(CallerConnection(connection), [JOB])
    assert gone.value.outcome == "not applied"
    assert (rows(server), sum((await backend.reads.count_jobs(budget=None)).values())) == (0, 0)


# Handlers


async def test_a_handler_writes_and_completes_in_one_commit(
    processor: Processor, server: RunningPostgres
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(ROW)
            await processor.enqueue_raw("thank", b"{}", connection=connection)
            assert rows(server) == 0

    status = await run(processor, pay)
    assert (status.state, status.error, rows(server)) == (State.COMPLETED, None, 1)
    assert await processor.pending_count() == 1


async def test_an_error_inside_undoes_all_of_it(
    processor: Processor, server: RunningPostgres
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(ROW)
            await connection.execute("SELECT 1/0")

    status = await run(processor, pay)
    assert (status.state, status.error.type, rows(server)) == (
        (State.FAILED, "DivisionByZeroError", 0)
    )


async def test_a_hook_writes_its_rows_with_the_outcome_of_the_failed_attempt(
    processor: Processor, server: RunningPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        raise ValueError("no money")

    @processor.on_failure
    @processor.on_dead
    async def write(ctx: Context, _: AttemptError) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(ROW)

    processor.register("pay", pay, max_retries=1, retry_backoff=0.0)
    job_id = await processor.enqueue_raw("pay", b"{}")
    assert await asyncio.wait_for(processor.drain(), DEADLINE) == 2
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures, rows(server)) == (State.FAILED, 2, 2)
    assert [each.type for each in record.history] == ["ValueError", "ValueError"]
    assert "the hook" not in caplog.text


async def test_a_handler_whose_connection_is_killed_fails_and_the_next_works(
    processor: Processor, server: RunningPostgres
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(ROW)
            if ctx.attempt == 1:
                pid = await connection.fetchval("SELECT pg_backend_pid()")
                server.ask("SELECT pg_terminate_backend(%s)", [pid])

    processor.register("pay", pay, max_retries=1, retry_backoff=0.0)
    job_id = await processor.enqueue_raw("pay", b"{}")
    assert await asyncio.wait_for(processor.drain(), DEADLINE) == 2
    status = await processor.get_status(job_id)
    assert (status.state, status.failures, rows(server)) == (State.COMPLETED, 1, 1)


async def test_more_handlers_than_connections_wait_for_their_turn(
    server: RunningPostgres, backend: PostgresBackend
) -> None:
    """Each enqueues inside its block, on another connection too: nobody waits for itself."""
    left, over = 20, asyncio.Event()
    processor = Processor(PostgresBackend(server.url + "?connections=1"), concurrency=10)

    async def pay(ctx: Context, _: bytes) -> None:
        nonlocal left
        async with ctx.transaction() as connection:
            await connection.execute(ROW)
            await processor.enqueue_raw("thank", b"{}", queue="later")
        left -= 1
        if not left:
            over.set()

    processor.register("pay", pay)
    async with processor:
        for _ in range(left):
            await processor.enqueue_raw("pay", b"{}")
        await processor.start()
        await asyncio.wait_for(over.wait(), DEADLINE)
    assert rows(server) == 20


async def test_a_handler_that_times_out_inside_keeps_nothing(
    processor: Processor, server: RunningPostgres
) -> None:
    async def pay(ctx: Context, _: bytes) -> None:
        async with ctx.transaction() as connection:
            await connection.execute(ROW)
            await connection.execute("SELECT pg_sleep(60)")

    processor.register("pay", pay, timeout=0.2)
    job_id = await processor.enqueue_raw("pay", b"{}")
    await asyncio.wait_for(processor.process_one(), DEADLINE)
    status = await processor.get_status(job_id)
    assert status.error is not None
    assert (status.state, status.error.kind, rows(server)) == (State.FAILED, "timeout", 0)
