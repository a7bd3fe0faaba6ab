"""Exchanges look for limits, pauses, tenants, flows and durable runs only after the first use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.runs import NewSignal
from nimburion.core.session import Session
from nimburion.core.settlement import Completed, Recorded, Settlement, Suspended
from nimburion.testing.contract.harness import make_limits
from tests.servers.server_kinds import RunningPostgres

SESSION = "5e" * 16
JOB = NewJob("first", "n", "q", b"{}")
TABLES = (
    "limit_rule",
    "limit_use",
    "changed_limit",
    "changed_key",
    "paused_queue",
    "tenant_turn",
    "share_class",
    "flow",
    "flow_change",
    "condition",
    "dependent",
    "run",
    "step",
    "signal",
)


@pytest.fixture
async def backend(clean_postgres: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    made = PostgresBackend(clean_postgres.url, timeout=60.0)
    await made.open()
    yield made
    await made.close()


async def count_scans(backend: PostgresBackend) -> int:
    """Return how often the tables of other features were read."""
    await backend._database.get_connections().main.fetch("SELECT pg_stat_force_next_flush()")
    return int(
        await backend._database.get_connections().main.fetch_value(
            """SELECT sum(seq_scan + coalesce(idx_scan, 0)) FROM pg_stat_user_tables
            WHERE schemaname = 'nimburion' AND relname = ANY ($1::text[])""",
            list(TABLES),
        )
    )


def read_used_features(clean_postgres: RunningPostgres) -> list[str]:
    with psycopg.connect(clean_postgres.url) as connection:
        rows = connection.execute("SELECT name FROM nimburion.used_feature ORDER BY name")
        return [name for (name,) in rows]


async def test_exchanges_of_plain_jobs_do_not_read_the_tables_of_other_features(
    backend: PostgresBackend, clean_postgres: RunningPostgres
) -> None:
    await backend.consuming.open_session(Session(id=SESSION, ttl=600.0, names=("n", "m")))
    request = ReserveRequest(10, (Lane("q", "n"), Lane("q", "m")))
    await backend.consuming.exchange(SESSION, 1, [], request)
    before = await count_scans(backend)
    await backend.producing.enqueue([JOB, NewJob("second", "m", "q", b"{}")])
    reply = await backend.consuming.exchange(SESSION, 2, [], request)
    done = [Completed(delivery.lease) for delivery in reply.deliveries]
    assert len(done) == 2
    await backend.consuming.exchange(SESSION, 3, done, request)
    assert await count_scans(backend) == before
    assert read_used_features(clean_postgres) == []


async def test_the_first_pause_is_recorded(
    backend: PostgresBackend, clean_postgres: RunningPostgres
) -> None:
    await backend.maintenance.pause_queue("q", paused=True)
    await backend.maintenance.pause_queue("q", paused=False)
    assert read_used_features(clean_postgres) == ["pauses"]


async def test_the_first_limit_is_recorded(
    backend: PostgresBackend, clean_postgres: RunningPostgres
) -> None:
    await backend.consuming.open_session(
        Session(id=SESSION, ttl=600.0, names=("n",), limits=make_limits({"n": 1}))
    )
    assert read_used_features(clean_postgres) == ["limits"]


async def test_the_first_job_of_a_tenant_is_recorded(
    backend: PostgresBackend, clean_postgres: RunningPostgres
) -> None:
    options = JobOptions(tenant="t")
    await backend.producing.enqueue([NewJob("first", "n", "q", b"{}", options=options)])
    assert read_used_features(clean_postgres) == ["tenants"]


@pytest.mark.parametrize("kind", ["suspended", "recorded"])
async def test_the_first_durable_run_is_recorded(
    backend: PostgresBackend, clean_postgres: RunningPostgres, kind: str
) -> None:
    await backend.consuming.open_session(Session(id=SESSION, ttl=600.0, names=("n",)))
    await backend.producing.enqueue([JOB])
    request = ReserveRequest(1, (Lane("q", "n"),))
    (held,) = (await backend.consuming.exchange(SESSION, 1, [], request)).deliveries
    kinds: dict[str, Settlement] = {
        "suspended": Suspended(held.lease, (), 60.0),
        "recorded": Recorded(held.lease, 1, b"x"),
    }
    await backend.consuming.exchange(SESSION, 2, [kinds[kind]], request)
    assert read_used_features(clean_postgres) == ["runs"]


async def test_the_first_signal_is_recorded(
    backend: PostgresBackend, clean_postgres: RunningPostgres
) -> None:
    await backend.producing.enqueue([JOB])
    await backend.producing.send_signals([NewSignal("first", "paid", "1", b"")])
    assert read_used_features(clean_postgres) == ["runs"]
