"""The SQLite backend keeps the contract."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nimburion.backends.sqlite import SQLiteBackend
from nimburion.core.backend import Backend
from nimburion.testing import FakeClock
from nimburion.testing.contract import BackendContract


class TestSQLite(BackendContract):
    @pytest.fixture(autouse=True)
    def _empty_backend(self, new_sqlite_file: Path, tmp_path: Path) -> None:
        shutil.copy(new_sqlite_file, tmp_path / "jobs.db")

    async def open_handles(self, clock: FakeClock, count: int, tmp_path: Path) -> list[Backend]:
        return [SQLiteBackend(tmp_path / "jobs.db", clock=clock) for _ in range(count)]
