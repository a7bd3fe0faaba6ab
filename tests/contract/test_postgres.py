"""The PostgreSQL backend keeps the contract, on each kind of server that the run is about."""

from __future__ import annotations

from pathlib import Path

import pytest

from nimburion.backends.postgres.backend import PostgresBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract
from tests.servers.server_kinds import RunningPostgres


class TestPostgres(BackendContract):
    url: str

    @pytest.fixture(autouse=True)
    def _empty_database(self, clean_postgres: RunningPostgres) -> None:
        self.url = clean_postgres.url

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        return [PostgresBackend(self.url, clock=clock, timeout=30.0) for _ in range(count)]
