"""The SQLite backend keeps the contract."""

from __future__ import annotations

from pathlib import Path

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract


class TestSQLite(BackendContract):
    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        return [SQLiteBackend(tmp_path / "jobs.db", clock=clock) for _ in range(count)]
