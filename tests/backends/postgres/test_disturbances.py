"""Things that go wrong with a server that lives, while jobs flow: no job is lost or run twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import psycopg
import pytest

from tests.crash.flow import Flow, Record, run_flow
from tests.servers.binaries import Binary
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_programs import pgbouncer_binary
from tests.servers.postgres_programs import postgres_binary as from_wheel
from tests.servers.proxy import Proxy

pytestmark = [pytest.mark.slow, pytest.mark.wide, pytest.mark.timeout(180)]

BOTH_WAYS: tuple[Literal["requests", "replies"], ...] = ("requests", "replies")


async def test_others_lock_the_tables_in_another_order(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    """The server sees deadlocks, and ends our side of them: these calls are made again."""
    with PostgresServer(postgres_binary, "deadlock_timeout=60ms") as server:
        async with run_flow(tmp_path, server.url, jobs=1_000) as flow:
            with open_rival_connection(server) as rival:
                while count_deadlocks(server) < 8:
                    await asyncio.to_thread(lock_backwards, rival)
                    await flow.pass_time(0.05)
        met = count_deadlocks(server)
    record_property(f"{postgres_binary.name}: deadlocks, in total", met)
    assert flow.refused.total() == 0
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_transactions_fail_to_serialize(tmp_path: Path, postgres_binary: Binary) -> None:
    """As some extensions and replicating servers say it, whatever the isolation."""
    with PostgresServer(postgres_binary) as server:
        async with run_flow(tmp_path, server.url, jobs=1_000) as flow:
            fail_at_random(server, "job", "exchange_log", "finished_job")
            await flow.wait_until_more(500)
            for table in ("job", "exchange_log", "finished_job"):
                server.ask(f"DROP TRIGGER fail ON nimburion.{table}")
        ((met,),) = server.ask("SELECT last_value FROM met")
    assert met > 50
    assert flow.refused.total() == 0
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_it_takes_no_writes_for_a_while(tmp_path: Path, postgres_binary: Binary) -> None:
    """As a hosting company does it when the disk is nearly full."""
    with PostgresServer(postgres_binary) as server:
        async with run_flow(tmp_path, server.url, jobs=1_000, per_second=500) as flow:
            await flow.wait_until_more(100)
            set_read_only(server, "on")
            await flow.pass_time(1.0)
            set_read_only(server, "off")
    assert flow.held_up
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_the_network_drops_delays_and_cuts(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    cut = resets = 0
    with PostgresServer(postgres_binary) as server:
        async with Proxy(server.port) as proxy:
            url = server.url.replace(str(server.port), str(proxy.port)) + "?timeout=0.5"
            async with run_flow(tmp_path, url, jobs=1_000, per_second=500, ttl=20.0) as flow:
                for n in range(3):
                    proxy.hold_up()
                    await flow.pass_time(0.8)
                    proxy.heal()
                    await flow.pass_time(0.2)
                    cut += proxy.cut()
                    for of in BOTH_WAYS:
                        proxy.reset_after(137 * n, of)
                        await proxy_has_served(flow, proxy)
                        resets += 1
    record_property("connections to PostgreSQL cut or reset, in total", cut + resets)
    assert cut > 8
    assert flow.held_up
    flow.result.check()
    assert flow.result.sessions_lost == 0


async def test_it_hangs_for_longer_than_sessions_live(
    tmp_path: Path, postgres_binary: Binary, record_property: Record
) -> None:
    """Workers stop believing in their leases, and what they hold may run again; nothing else."""
    with PostgresServer(postgres_binary) as server:
        url = f"{server.url}?timeout=1"
        async with run_flow(tmp_path, url, jobs=1_000, per_second=500, ttl=1.0) as flow:
            await flow.wait_until_more(100)
            server.pause()
            await flow.pass_time(2.5)
            server.resume()
    flow.result.record_counts(
        record_property, f"{postgres_binary.name}, hung for 2.5 session lives"
    )
    assert flow.result.sessions_lost >= len(flow.workers)
    flow.result.check(flow.result.was_given_up)
    assert flow.result.lost == set()


@pytest.mark.parametrize("postgres_server", ["pgbouncer"], indirect=True)
@pytest.mark.usefixtures("postgres_server")  # only for a run that asks for it
async def test_the_pooler_is_restarted(tmp_path: Path) -> None:
    with PgBouncer(pgbouncer_binary(), PostgresServer(from_wheel())) as pooler:
        pooler.empty()
        async with run_flow(tmp_path, pooler.url, jobs=1_500) as flow:
            for _ in range(3):
                await flow.wait_until_more(300)
                await asyncio.to_thread(pooler.stop)
                await asyncio.to_thread(pooler.start)
    flow.result.check()
    assert flow.result.sessions_lost == 0


# --- steps ----------------------------------------------------------------------------------------


@contextmanager
def open_rival_connection(server: PostgresServer) -> Iterator[psycopg.Connection]:
    """Somebody else's connection, who is never the first to look for a deadlock."""
    with psycopg.connect(server.url) as rival:
        rival.execute("SET deadlock_timeout = '10s'")
        rival.commit()
        yield rival


def lock_backwards(rival: psycopg.Connection) -> None:
    """A new job stands in `job` before it stands in `ready`."""
    rival.execute("LOCK TABLE nimburion.ready IN EXCLUSIVE MODE")
    rival.execute("SELECT pg_sleep(0.01)")  # who waits the longest looks first
    rival.execute("LOCK TABLE nimburion.job IN EXCLUSIVE MODE")
    rival.commit()


def count_deadlocks(server: PostgresServer) -> int:
    """How many the server has resolved."""
    return int(server.ask("SELECT sum(deadlocks) FROM pg_stat_database")[0][0])


def fail_at_random(server: PostgresServer, *tables: str) -> None:
    """Let every fifth statement that inserts there fail, and count them."""
    server.ask("CREATE SEQUENCE met")
    server.ask(
        """CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF random() < 0.2 THEN
                PERFORM nextval('public.met');
                RAISE EXCEPTION 'somebody was faster' USING ERRCODE = '40001';
            END IF;
            RETURN NULL;
        END $$"""
    )
    for table in tables:
        server.ask(
            f"CREATE TRIGGER fail AFTER INSERT ON nimburion.{table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION fail()"
        )


def set_read_only(server: PostgresServer, value: str) -> None:
    """What transactions are from now on that do not say it themselves."""
    server.ask(f"ALTER SYSTEM SET default_transaction_read_only = {value}")
    server.ask("SELECT pg_reload_conf()")


async def proxy_has_served(flow: Flow, proxy: Proxy) -> None:
    """Somebody whose connection was reset has made another one."""
    before = proxy.connections
    await flow.wait_until(lambda: proxy.connections > before, "somebody connects anew")
