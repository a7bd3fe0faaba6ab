"""A link mends itself, says what may be concluded, and works through a pooler."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg
import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.backends.postgres.connection.pool import ConnectionPool, PostgresConnection
from nimburion.backends.postgres.url import PostgresSettings, parse_url
from nimburion.core.errors import (
    BackendReadOnly,
    BackendUnavailable,
    ConfigurationError,
    FormatMismatch,
    Unstorable,
)
from nimburion.core.exchange import RESERVE_NOTHING, Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.maintenance import Retention
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Settlement
from tests.servers.binaries import Binary
from tests.servers.postgres import OWNER, PostgresServer
from tests.servers.server_kinds import RunningPostgres
from tests.waiting import wait_until


@pytest.fixture
async def connection(postgres_server: RunningPostgres) -> AsyncIterator[PostgresConnection]:
    made = PostgresConnection(parse_url(postgres_server.url), asyncio.sleep)
    yield made
    await made.close()


async def test_a_connection_connects_on_first_use(connection: PostgresConnection) -> None:
    before = connection.is_open
    assert await connection.fetch_value("SELECT $1::int8 + 1", 41) == 42
    assert (before, connection.is_open) == (False, True)
    assert [
        tuple(row) for row in await connection.fetch("SELECT * FROM unnest($1::text[])", ["a", "b"])
    ] == [
        ("a",),
        ("b",),
    ]


async def test_a_pooler_is_detected(
    connection: PostgresConnection, postgres_server: RunningPostgres
) -> None:
    await connection.connect()
    assert connection.server.pooled is ("PgBouncer" in postgres_server.name)
    assert not connection.server.standby


async def test_a_call_is_read_committed_whatever_the_default(
    connection: PostgresConnection,
) -> None:
    queries = "SELECT current_setting('transaction_isolation')"
    assert await connection.fetch_value(queries) == "read committed"
    assert await connection.fetch_value(queries) == "read committed"


async def test_many_connections_share_few_of_a_pooler(
    postgres_server: RunningPostgres,
) -> None:
    pool = [PostgresConnection(parse_url(postgres_server.url), asyncio.sleep) for _ in range(8)]
    queries = [f"SELECT $1::int4 + {n}" for n in range(6)]
    for _ in range(3):
        found = await asyncio.gather(
            *(one.fetch_value(text, 1) for one in pool for text in queries)
        )
        assert found == [1 + n for _ in pool for n in range(6)]
    for one in pool:
        await one.close()


async def test_it_is_known_by_name(
    connection: PostgresConnection, postgres_server: RunningPostgres
) -> None:
    await connection.connect()
    named = postgres_server.ask(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'nimburion'"
    )
    assert named[0][0] >= 1


async def test_a_killed_connection_leaves_the_outcome_unknown(
    connection: PostgresConnection, postgres_server: RunningPostgres
) -> None:
    await connection.connect()
    call = asyncio.create_task(connection.fetch("SELECT pg_sleep(20)"))
    await wait_until_sleeping(postgres_server)
    postgres_server.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ 'sleep.20' "
        "AND pid <> pg_backend_pid()"
    )
    with pytest.raises(BackendUnavailable, match="may have been applied") as caught:
        await call
    assert caught.value.outcome == "unknown"
    assert await connection.fetch_value("SELECT 1") == 1


async def test_an_answer_that_does_not_come_is_not_waited_for(
    postgres_server: RunningPostgres,
) -> None:
    connection = PostgresConnection(
        parse_url(postgres_server.url).replace(timeout=0.5), asyncio.sleep
    )
    with pytest.raises(BackendUnavailable, match="no answer in time") as caught:
        await connection.fetch("SELECT pg_sleep(20)")
    assert caught.value.outcome == "unknown"
    assert await connection.fetch_value("SELECT 1") == 1
    await connection.close()


async def test_a_cancelled_call_leaves_a_working_connection(
    connection: PostgresConnection, postgres_server: RunningPostgres
) -> None:
    call = asyncio.create_task(connection.fetch("SELECT pg_sleep(20)"))
    await wait_until_sleeping(postgres_server)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await connection.fetch_value("SELECT 1") == 1


async def test_what_cannot_be_held_is_unstorable(connection: PostgresConnection) -> None:
    for value in ("a\0b", "\ud800", 5):
        with pytest.raises(Unstorable):
            await connection.fetch("SELECT $1::text", value)
    assert await connection.fetch_value("SELECT 1") == 1


async def test_missing_tables_name_the_command(connection: PostgresConnection) -> None:
    with pytest.raises(FormatMismatch, match="nimburion migrate up"):
        await connection.fetch("SELECT * FROM nimburion.job")


async def test_a_deadlock_is_repeated(postgres_server: RunningPostgres) -> None:
    postgres_server.ask("CREATE TABLE pair (n int PRIMARY KEY, times int NOT NULL DEFAULT 0)")
    postgres_server.ask("INSERT INTO pair VALUES (1), (2)")
    for name, (first, second) in {"up": (1, 2), "down": (2, 1)}.items():
        postgres_server.ask(
            f"CREATE FUNCTION {name}() RETURNS void LANGUAGE plpgsql AS $$ BEGIN "
            f"UPDATE pair SET times = times + 1 WHERE n = {first}; PERFORM pg_sleep(0.05); "
            f"UPDATE pair SET times = times + 1 WHERE n = {second}; END $$"
        )
    pool = [PostgresConnection(parse_url(postgres_server.url), asyncio.sleep) for _ in range(2)]
    for _ in range(3):
        await asyncio.gather(pool[0].fetch("SELECT up()"), pool[1].fetch("SELECT down()"))
    assert postgres_server.ask("SELECT times FROM pair") == [(6,), (6,)]
    for one in pool:
        await one.close()


@contextmanager
def hold_lock(server: RunningPostgres, table: str) -> Iterator[None]:
    """Hold a lock that keeps everybody else from reading a table."""
    direct = getattr(server, "server", server)  # past a pooler
    with psycopg.connect(direct.url_for(OWNER)) as rival:
        rival.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE".encode())
        yield


async def cancelled_look_up(
    connection: PostgresConnection, server: RunningPostgres, statement: str
) -> None:
    """Cancel a call while the driver looks up a type for a statement that the server has parsed."""
    with hold_lock(server, "pg_catalog.pg_range"):
        call = asyncio.create_task(connection.fetch(statement, "calm"))
        await wait_until(lambda: cancel_who_waits(server), "waits for the lock")
        with pytest.raises(BackendUnavailable, match="the server cancelled the call"):
            await call


def cancel_who_waits(server: RunningPostgres) -> bool:
    return bool(
        server.ask(
            "SELECT pg_cancel_backend(pid) FROM pg_stat_activity "
            "WHERE wait_event_type = 'Lock' AND query LIKE '%typeinfo_tree%'"
        )
    )


async def test_a_type_look_up_that_was_cancelled_spoils_no_later_call(
    connection: PostgresConnection, postgres_server: RunningPostgres
) -> None:
    postgres_server.ask("CREATE TYPE mood AS ENUM ('calm')")
    statement = "SELECT $1::mood::text"
    await connection.connect()
    await cancelled_look_up(connection, postgres_server, statement)
    assert await connection.fetch_value(statement, "calm") == "calm"
    assert await connection.fetch_value("SELECT 1") == 1


async def test_the_types_of_our_statements_are_never_looked_up(postgres_binary: Binary) -> None:
    """For each operation of a producer and of a worker: the server sees every statement."""
    with PostgresServer(postgres_binary, "log_statement=all") as server:
        backend = PostgresBackend(server.url)
        await backend.open()
        await each_operation(backend)
        await backend.close()
        assert "exchange_1" in server.log
        assert "typeinfo_tree" not in server.log


async def each_operation(backend: PostgresBackend) -> None:
    jobs = [NewJob(f"job-{n}", "n", "q", b"{}", after=0.0 if n else 5.0) for n in range(3)]
    await backend.producing.enqueue(jobs)
    await backend.producing.enqueue([NewJob("one", "n", "q", b"{}")])
    session = Session(id="ab" * 16, names=("n",))
    await backend.consuming.open_session(session)
    want = ReserveRequest(3, (Lane("q", "n"),), nonce=b"n" * 16)
    reply = await backend.consuming.exchange(session.id, 1, [], want)
    settled: list[Settlement] = [Completed(one.lease, b"1") for one in reply.deliveries]
    assert len(settled) == 3
    await backend.consuming.exchange(session.id, 2, settled, RESERVE_NOTHING)
    await backend.consuming.heartbeat(session.id)
    await backend.consuming.rescue(10, max_lost=3)
    await backend.consuming.promote(10)
    await backend.consuming.close_session(session.id)
    await backend.reads.get_job("one")
    await backend.reads.list_jobs()
    await backend.reads.count_jobs(budget=None)
    await backend.reads.list_queues()
    await backend.reads.list_sessions()
    await backend.producing.cancel("job-0")
    await backend.maintenance.prune(Retention(), 10)


async def test_a_connection_that_fell_out_of_step_is_given_up(
    connection: PostgresConnection, postgres_server: RunningPostgres
) -> None:
    """Whatever left a statement, or an open transaction, behind on it."""
    if "PgBouncer" in postgres_server.name:
        pytest.skip("it prepares nothing under a name")
    await connection.connect()
    for spoil in ("PREPARE nimburion_0 AS SELECT 1", "BEGIN; SELECT 1/0"):
        with suppress(asyncpg.PostgresError):
            await connection.driver.execute(spoil)
        with suppress(BackendUnavailable):
            await connection.fetch_value("SELECT 1")
        assert await connection.fetch_value("SELECT 1") == 1


async def test_a_worker_listens_again_after_the_server_refused_it_once(
    postgres_server: RunningPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "PgBouncer" in postgres_server.name:
        pytest.skip("nobody can listen behind it")
    add_listener = asyncpg.Connection.add_listener
    refusals = [asyncpg.QueryCanceledError("canceling statement due to statement timeout")]

    async def refuse_once(self: Any, channel: str, callback: Any) -> None:
        if refusals:
            raise refusals.pop()
        await add_listener(self, channel, callback)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", refuse_once)
    backend, other = PostgresBackend(postgres_server.url), PostgresBackend(postgres_server.url)
    await backend.open()
    await other.open()
    waiting = asyncio.create_task(backend.consuming.wait(["q"], 60))
    notifications = backend._database.get_connections().notifications
    await wait_until(notifications._is_connected.is_set, "it listens")
    await other.producing.enqueue([NewJob("a", "n", "q", b"{}")])
    async with asyncio.timeout(20):
        await waiting
    assert refusals == []
    await backend.close()
    await other.close()


async def test_pool_connections_are_made_on_demand_and_reused(
    postgres_server: RunningPostgres,
) -> None:
    pool = ConnectionPool(parse_url(postgres_server.url).replace(connections=2), asyncio.sleep)
    assert await asyncio.gather(*(pool.fetch_value("SELECT $1::int4", n) for n in range(20))) == [
        *range(20)
    ]
    async with pool.acquire() as first, pool.acquire() as second:
        assert first is not second
    async with pool.acquire() as again:
        assert again is first
    await pool.close()


@pytest.mark.parametrize("given", [False, True])
async def test_a_cancelled_acquire_keeps_no_connection(*, given: bool) -> None:
    """Cancelled while it waits, and just when it was given one."""
    pool = ConnectionPool(
        parse_url("postgresql://127.0.0.1/x").replace(connections=1), asyncio.sleep
    )

    async def borrowing() -> PostgresConnection:
        async with pool.acquire() as connection:
            return connection

    async with pool.acquire() as only:
        first, second = asyncio.create_task(borrowing()), asyncio.create_task(borrowing())
        await asyncio.sleep(0)
        if not given:
            first.cancel()
            await asyncio.wait([first])
    first.cancel()
    async with asyncio.timeout(10):
        assert await second is only
    assert first.cancelled()
    assert await borrowing() is only


async def test_a_connection_that_is_given_up_in_use_is_replaced() -> None:
    """Who waits gets another one."""
    settings = parse_url("postgresql://127.0.0.1/x").replace(connections=1)
    kept = PostgresConnection(settings, asyncio.sleep)
    pool = ConnectionPool(settings, asyncio.sleep, kept=kept)

    async def borrow() -> PostgresConnection:
        async with pool.acquire() as connection:
            return connection

    async with pool.acquire() as only:
        assert only is kept
        waiting = asyncio.create_task(borrow())
        await asyncio.sleep(0)
        pool.give_up_kept()
    async with asyncio.timeout(10):
        replacement = await waiting
    assert replacement is not kept
    assert await borrow() is replacement
    await pool.close()


async def test_a_connection_that_is_given_up_idle_is_not_used_again() -> None:
    settings = parse_url("postgresql://127.0.0.1/x")
    kept = PostgresConnection(settings, asyncio.sleep)
    pool = ConnectionPool(settings, asyncio.sleep, kept=kept)
    pool.give_up_kept()
    async with pool.acquire() as connection:
        assert connection is not kept
    await pool.close()


# --- servers of one's own -----------------------------------------------------------------------


async def test_a_restarted_server_is_found_again(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary) as server:
        connection = PostgresConnection(parse_url(server.url), asyncio.sleep)
        assert await connection.fetch_value("SELECT 1") == 1
        server.stop_immediately()
        await wait_until_closed(connection)
        with pytest.raises(BackendUnavailable, match="nothing listens") as caught:
            await connection.fetch_value("SELECT 1")
        assert caught.value.outcome == "not applied"
        server.start()
        assert await connection.fetch_value("SELECT 1") == 1
        await connection.close()


async def test_of_several_servers_the_one_that_takes_writes(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary) as server, server.follower() as standby:
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{server.port}"
        connection = PostgresConnection(
            parse_url(f"postgresql://postgres@{hosts}/postgres"), asyncio.sleep
        )
        await connection.fetch("CREATE TABLE kept ()")
        await wait_until_seen(standby, "SELECT 1 WHERE to_regclass('kept') IS NOT NULL")
        await asyncio.to_thread(server.kill)
        await wait_until_closed(connection)
        with pytest.raises(BackendUnavailable, match=r"nothing listens.*standby"):
            await connection.fetch("SELECT 1")
        await asyncio.to_thread(standby.promote)
        assert await connection.fetch("SELECT * FROM kept") == []
        await connection.close()
        alone = PostgresConnection(parse_url(standby.url), asyncio.sleep)
        assert await alone.fetch_value("SELECT 1") == 1
        await alone.close()


async def test_a_read_only_server_is_reported(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary) as server, server.follower() as standby:
        connection = PostgresConnection(parse_url(standby.url), asyncio.sleep)
        with pytest.raises(BackendUnavailable, match="is a standby and takes no writes"):
            await connection.connect()
        reading = PostgresConnection(
            parse_url(f"{standby.url}?target_session_attrs=any"), asyncio.sleep
        )
        assert await reading.fetch_value("SELECT 1") == 1
        with pytest.raises(BackendUnavailable, match="it is read-only") as caught:
            await reading.fetch("CREATE TABLE x ()")
        assert caught.value.outcome == "not applied"
        await reading.close()
        server.ask("ALTER ROLE postgres SET default_transaction_read_only = on")
        with pytest.raises(BackendReadOnly, match="is read-only"):
            await PostgresConnection(parse_url(server.url), asyncio.sleep).connect()


async def test_an_authentication_error_is_explained(postgres_binary: Binary) -> None:
    hba = ["host all reader 127.0.0.1/32 scram-sha-256", "host all nobody 127.0.0.1/32 reject"]
    with PostgresServer(postgres_binary, "max_connections=4", hba=hba) as server:
        server.ask("CREATE ROLE reader LOGIN PASSWORD 'right'")
        await expect_connect_error(
            parse_url(server.url_for("reader", "wrong")), "refused the login.*password"
        )
        await expect_connect_error(parse_url(server.url_for("nobody")), "refused the login")
        await expect_connect_error(parse_url(server.url_for("stranger")), "refused the login")
        await expect_connect_error(
            parse_url(server.url_for("postgres", database="nothing")), "no such database"
        )
        await expect_connect_error(
            parse_url(f"{server.url}?sslmode=require"), "does not support TLS"
        )
        await expect_connect_error(
            parse_url(f"{server.url}?sslrootcert=/no&sslmode=verify-full"), "/no|No such file"
        )


@pytest.mark.parametrize("mode", ["", "?sslmode=prefer", "?sslmode=disable"])
async def test_a_server_that_is_not_postgresql_is_reported(mode: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        connection = PostgresConnection(
            parse_url(f"postgresql://127.0.0.1:{port}/x{mode}"), asyncio.sleep
        )
        with pytest.raises(BackendUnavailable, match="PostgreSQL server") as caught:
            await connection.connect()
    assert "\n" not in str(caught.value)
    assert "TLS" not in str(caught.value)


async def test_an_unreachable_server_is_explained_in_one_line() -> None:
    with pytest.raises(BackendUnavailable, match="there is no socket"):
        await PostgresConnection(
            parse_url("postgresql:///x?host=/nowhere"), asyncio.sleep
        ).connect()
    with pytest.raises(BackendUnavailable, match=r"name of .* is not known"):
        await PostgresConnection(
            parse_url("postgresql://no.such.host.invalid/x"), asyncio.sleep
        ).connect()


async def test_a_server_that_hangs_is_given_up(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary) as server:
        connection = PostgresConnection(parse_url(server.url).replace(timeout=0.5), asyncio.sleep)
        await connection.connect()
        server.pause()
        with pytest.raises(BackendUnavailable, match="no answer in time"):
            await connection.fetch("SELECT 1")
        with pytest.raises(BackendUnavailable, match="no answer from"):
            await connection.fetch("SELECT 1")
        server.resume()
        assert await connection.fetch_value("SELECT 1") == 1
        await connection.close()


# --- steps --------------------------------------------------------------------------------------


async def expect_connect_error(settings: PostgresSettings, match: str) -> None:
    with pytest.raises((ConfigurationError, BackendUnavailable), match=match) as caught:
        await PostgresConnection(settings, asyncio.sleep).connect()
    assert "\n" not in str(caught.value)


async def wait_until_sleeping(server: RunningPostgres) -> None:
    await wait_until_seen(
        server,
        "SELECT 1 FROM pg_stat_activity WHERE query ~ 'sleep.20' AND pid <> pg_backend_pid()",
    )


async def wait_until_seen(server: RunningPostgres, query: str) -> None:
    await wait_until(lambda: bool(server.ask(query)), query)


async def wait_until_closed(connection: PostgresConnection) -> None:
    await wait_until(lambda: not connection.is_open, "the link is closed")
