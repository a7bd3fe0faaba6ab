"""A backend whose role may read and write, and make nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nimburion.backends.postgres import PostgresBackend
from tests.servers.server_kinds import RunningPostgres

WORKER = "worker_of_tests"


@asynccontextmanager
async def open_as_worker_role(server: RunningPostgres) -> AsyncIterator[PostgresBackend]:
    """Let the server's owner make the tables, and open them as a role with a worker's grants."""
    if not server.ask("SELECT 1 FROM pg_roles WHERE rolname = %s", (WORKER,)):
        server.ask(f"CREATE ROLE {WORKER} LOGIN")
    owner = PostgresBackend(server.url)
    await owner.migrate()
    await owner.grant(WORKER)
    made = PostgresBackend(server.url_for(WORKER))
    await made.open()
    try:
        yield made
    finally:
        await made.close()
