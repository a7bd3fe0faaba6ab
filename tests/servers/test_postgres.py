"""PostgreSQL servers start, end in every way, and leave nothing; PgBouncer pools connections."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from nimburion.backends.postgres import PostgresBackend
from nimburion.core.job import NewJob
from tests.servers.binaries import Binary, ServerNotFound
from tests.servers.postgres import PostgresServer
from tests.servers.server import ServerFailed
from tests.servers.server_kinds import POSTGRES_KINDS, RunningPostgres, read_requested_kinds


def test_each_kind_answers_in_an_empty_database(postgres_server: RunningPostgres) -> None:
    with psycopg.connect(postgres_server.url, prepare_threshold=None) as connection:
        found = connection.execute("SELECT current_database(), count(*) FROM pg_stat_user_tables")
        assert found.fetchone() == (postgres_server.database, 0)
    postgres_server.ask("CREATE TABLE left_over ()")
    postgres_server.empty()
    assert postgres_server.ask("SELECT count(*) FROM pg_stat_user_tables") == [(0,)]


@pytest.mark.skipif(not Path("/proc/sysvipc/shm").exists(), reason="needs Linux")
def test_a_closed_server_leaves_no_shared_memory(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary) as server:
        lines = Path(f"/proc/{server.pid}/maps").read_text().splitlines()
        shared = {line.split()[-1] for line in lines if " rw-s " in line and "deleted" not in line}
        assert list_segments(server.pid)
    assert not [name for name in shared if Path(name).exists()]
    assert not list_segments(server.pid)


def list_segments(creator: int) -> list[str]:
    """The segments of System V shared memory that this process has made."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return [line for line in lines if int(line.split()[4]) == creator]


async def test_a_reused_schema_is_as_new(clean_postgres: RunningPostgres) -> None:
    clean_postgres.ask("DROP SCHEMA IF EXISTS nimburion CASCADE")
    async with open_postgres_backend(clean_postgres.url):
        new = read_state(clean_postgres)
    for body in (b"{}", b'{"a": "%s"}' % (b"long" * 400_000)):
        clean_postgres.forget()
        async with open_postgres_backend(clean_postgres.url) as backend:
            assert read_state(clean_postgres) == new
            await backend.producing.enqueue([NewJob(one, "a", "q", body) for one in "xyz"])
            await backend.maintenance.pause_queue("q", paused=True)
            assert read_state(clean_postgres) != new
        clean_postgres.ask("UPDATE nimburion.horizon SET finished_at = 1, seq = 2")
    clean_postgres.forget()
    assert read_state(clean_postgres) == new


def read_state(server: RunningPostgres) -> dict[str, object]:
    """All that a backend holds: rows of its tables, and where its sequences are."""
    made = server.ask(
        "SELECT CAST(oid AS regclass)::text, relkind FROM pg_class"
        " WHERE relnamespace = to_regnamespace('nimburion') AND relkind IN ('r', 'S')"
    )
    queries = {"r": "SELECT CAST(t AS text) FROM {} t", "S": "SELECT last_value, is_called FROM {}"}
    return {name: server.ask(queries[kind].format(name)) for name, kind in made}


@asynccontextmanager
async def open_postgres_backend(url: str) -> AsyncIterator[PostgresBackend]:
    backend = PostgresBackend(url, timeout=30.0)
    await backend.open()
    try:
        yield backend
    finally:
        await backend.close()


def test_the_data_outlives_every_end(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary, durable=True) as server:
        server.ask("CREATE TABLE kept (n int)")
        for n, end in enumerate((server.stop, server.stop_immediately, server.kill)):
            server.ask("INSERT INTO kept VALUES (%s)", (n,))
            end()
            assert not server.runs
            server.start()
        assert server.ask("SELECT n FROM kept ORDER BY n") == [(0,), (1,), (2,)]
        pid, folder = server.pid, server.folder
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_standby_follows_and_takes_over(postgres_binary: Binary) -> None:
    with PostgresServer(postgres_binary) as server, server.follower() as standby:
        assert standby.ask("SELECT pg_is_in_recovery()") == [(True,)]
        server.kill()
        standby.promote()
        assert standby.ask("SELECT pg_is_in_recovery()") == [(False,)]


def test_a_password_is_required_where_configured(postgres_binary: Binary) -> None:
    hba = ["host all reader 127.0.0.1/32 scram-sha-256"]
    with PostgresServer(postgres_binary, hba=hba) as server:
        server.ask("CREATE ROLE reader LOGIN PASSWORD 'open sesame'")
        with psycopg.connect(server.url_for("reader", "open sesame")) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(server.url_for("reader"))


def test_a_setting_that_does_not_exist_shows_the_log(postgres_binary: Binary) -> None:
    server = PostgresServer(postgres_binary, "no_such_setting=1")
    with pytest.raises(ServerFailed, match=r"(?s)ended at its start.*no_such_setting"), server:
        pass
    assert not server.folder.exists()


@pytest.mark.parametrize("kind", ["postgres15", "postgres17", "pgbouncer"])
def test_a_server_that_is_not_here_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NB_TEST_SERVERS", kind)
    monkeypatch.setenv(f"NB_TEST_{kind.upper()}", "/nowhere/program")
    with pytest.raises(ServerNotFound, match="/nowhere/program"):
        read_requested_kinds()


def test_every_kind_of_postgres_has_its_url() -> None:
    assert {kind.rstrip("0123456789").partition("-")[0] for kind in POSTGRES_KINDS} == {
        "postgres",
        "pgbouncer",
    }
