"""The PostgreSQL backend keeps the contract, on each kind of server that the run is about."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from nimburion.backends.postgres.backend import PostgresBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract
from nimburion.testing.contract.harness import Harness
from tests.contract.kept_connections import KeptConnections
from tests.contract.neighbours import Neighbours
from tests.servers.pgbouncer import PgBouncer
from tests.servers.server_kinds import RunningPostgres


class TestPostgres(BackendContract):
    url: str

    @pytest.fixture(autouse=True)
    def _empty_database(
        self,
        clean_postgres: RunningPostgres,
        kept_connections: KeptConnections,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        self.url = clean_postgres.url
        if not isinstance(clean_postgres, PgBouncer):  # which keeps connections itself
            monkeypatch.setattr(asyncpg, "connect", kept_connections.connect)

    @pytest_asyncio.fixture(autouse=True, loop_scope="session")
    async def _neighbours(
        self, _empty_database: None, opened_neighbours: dict[str, Neighbours]
    ) -> None:
        """Other schemas of the database are in use."""
        if self.url not in opened_neighbours:
            neighbours = opened_neighbours[self.url] = Neighbours(self.url)
            await neighbours.open()
        await opened_neighbours[self.url].work()

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        return [PostgresBackend(self.url, clock=clock, timeout=30.0) for _ in range(count)]

    @pytest_asyncio.fixture(loop_scope="session")
    async def harness(self, tmp_path: Path) -> AsyncIterator[Harness]:
        async with self.make_harness(1, tmp_path) as harness:
            yield harness

    @pytest_asyncio.fixture(loop_scope="session")
    async def fleet(self, tmp_path: Path) -> AsyncIterator[Harness]:
        async with self.make_harness(8, tmp_path) as harness:
            yield harness
