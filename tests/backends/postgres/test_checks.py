"""An examination says what would be lost, what is in the way and what to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

import psycopg
import pytest

from nimburion.backends.checks import format_size
from nimburion.backends.postgres.checks import (
    check_clock,
    check_connections,
    check_durability,
    check_role,
    check_snapshots,
    check_vacuum,
    count_workers,
    run_checks,
)
from nimburion.backends.postgres.connection.pool import PostgresConnection
from nimburion.backends.postgres.migrations import run_migrations
from nimburion.backends.postgres.url import PostgresSettings, parse_url
from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.timing.clock import SystemClock
from tests.backends.postgres.test_migrations import FIRST, SECOND
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.servers.server_kinds import RunningPostgres

SERVER: Mapping[str, Any] = {
    "version": "18.6",
    "user": "app",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "synchronous_standbys": "",
    "autovacuum": "on",
    "standby": False,
    "connections": 10,
    "most_connections": 103,
    "reserved_connections": 3,
    "unfrozen": 1000,
    "bytes": 1 << 20,
}
TABLE: Mapping[str, Any] = {
    "name": "ready",
    "bytes": 8192,
    "live": 10,
    "dead": 0,
    "vacuumed": None,
    "switched_off": False,
}


@pytest.fixture
def settings(postgres_server: RunningPostgres) -> PostgresSettings:
    return parse_url(postgres_server.url)


@pytest.fixture
async def connection(settings: PostgresSettings) -> AsyncIterator[PostgresConnection]:
    made = PostgresConnection(settings, asyncio.sleep)
    await run_migrations(made, settings, FIRST)
    yield made
    await made.close()


class InstantClock(SystemClock):
    """A clock on which the server answers at once, however busy the machine is."""

    def monotonic(self) -> float:
        return 0.0


async def test_each_subject_occurs_once_in_one_line(
    connection: PostgresConnection, settings: PostgresSettings
) -> None:
    found = await run_checks(connection, settings, FIRST, InstantClock())
    subjects = [one.subject for one in found]
    assert len({*subjects}) == len(subjects) == 11
    assert all("\n" not in one.text + one.advice for one in found)
    assert all(bool(one.advice) == (one.verdict != "good") for one in found)
    assert [one.subject for one in found if one.verdict != "good"] == ["durability"]  # fsync is off


async def test_pooler_and_format_are_detected(
    connection: PostgresConnection, settings: PostgresSettings, postgres_server: RunningPostgres
) -> None:
    found = index_by_subject(await run_checks(connection, settings, SECOND, SystemClock()))
    pooled = "PgBouncer" in postgres_server.name
    assert ("polling" in found["wake-up"].text) is pooled
    assert found["format"].text == "1; this nimburion writes 2"
    assert found["size"].text.startswith(("24.0 KiB", "32.0 KiB", "40.0 KiB", "48.0 KiB"))


async def test_a_prepared_transaction_is_found(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary, "max_prepared_transactions=2", durable=True) as server:
        settings = parse_url(server.url)
        connection = PostgresConnection(settings, asyncio.sleep)
        await run_migrations(connection, settings, FIRST)
        with psycopg.connect(server.url, autocommit=True) as holder:
            holder.execute("BEGIN")
            holder.execute("SELECT pg_current_xact_id()")
            holder.execute("PREPARE TRANSACTION 'forgotten'")
        found = index_by_subject(await run_checks(connection, settings, FIRST, SystemClock()))
        assert found["durability"].verdict == "good"
        assert found["snapshots"].verdict == "good"  # it is young
        await connection.close()


@pytest.mark.parametrize(
    ("wrong", "verdict", "message"),
    [
        ({"fsync": "off"}, "error", "fsync is off"),
        ({"full_page_writes": "off"}, "warning", "torn pages"),
        ({"synchronous_commit": "off"}, "warning", "just enqueued"),
        ({"synchronous_standbys": "one"}, "good", "a standby's"),
        ({}, "good", "on its disk"),
    ],
)
def test_durability(wrong: Mapping[str, str], verdict: str, message: str) -> None:
    found = check_durability({**SERVER, **wrong})
    assert (found.verdict, message in found.text) == (verdict, True)


@pytest.mark.parametrize(
    ("server", "table", "verdict", "message"),
    [
        ({"autovacuum": "off"}, {}, "error", "autovacuum is off"),
        ({}, {"switched_off": True}, "error", "switched off for ready"),
        ({"unfrozen": 1_500_000_000}, {}, "warning", "1,500,000,000 transactions"),
        ({}, {"dead": 300_000, "live": 1000}, "warning", "most dead rows in ready"),
        ({}, {"dead": 300_000, "live": 9_000_000}, "good", "autovacuum is on"),
        ({}, {}, "good", "no table holds dead rows"),
    ],
)
def test_vacuum(
    server: Mapping[str, Any], table: Mapping[str, Any], verdict: str, message: str
) -> None:
    found = check_vacuum({**SERVER, **server}, [{**TABLE, **table}])
    assert (found.verdict, message in found.text) == (verdict, True)


def test_old_snapshots_are_named() -> None:
    young = {"kind": "session", "whose": "pid 1", "seconds": 10.0, "transactions": 5}
    old = {**young, "seconds": 4000.0, "whose": "pid 2 of app (idle in transaction)"}
    slot = {"kind": "replication slot", "whose": "gone", "seconds": None, "transactions": 2_000_000}
    assert check_snapshots([young]).verdict == "good"
    found = check_snapshots([young, old, slot])
    assert found.verdict == "warning"
    assert found.text == (
        "session pid 2 of app (idle in transaction), 4000 s old; "
        "replication slot gone, 2,000,000 transactions old"
    )


def test_each_check_of_the_server_has_its_verdict() -> None:
    assert check_role({**SERVER, "standby": True}).verdict == "error"
    assert check_connections({**SERVER, "connections": 90}).verdict == "warning"
    assert check_connections(SERVER).text == (
        "10 of 100; the others are enough for 42 more idle workers under supervisors of 8 "
        "processes, or 45 alone"
    )
    assert (count_workers(97), count_workers(97, 1)) == (45, 48), "max_connections = 100"
    assert (count_workers(16), count_workers(2), count_workers(0)) == (7, 0, 0)
    assert (count_workers(3, 1), count_workers(2, 1), count_workers(0, 1)) == (1, 1, 0)
    assert check_clock(100.0, 99.0, 101.0).verdict == "good"
    assert check_clock(200.0, 99.0, 101.0).text == "+99.0 s from this host's"
    assert [format_size(n) for n in (5, 2048, 3 << 20, 5 << 30)] == [
        "5 bytes",
        "2.0 KiB",
        "3.0 MiB",
        "5.0 GiB",
    ]


def index_by_subject(found: list[CheckResult]) -> dict[str, CheckResult]:
    return {one.subject: one for one in found}
