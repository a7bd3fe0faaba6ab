"""`SQLiteScheduling`: fire the ticks of schedules."""

from __future__ import annotations

from nimburion.backends.sqlite import operations
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap


class SQLiteScheduling(Scheduling):
    """The operations of `Scheduling` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        return await self._file.write(
            lambda db: operations.fire(db, name, (expected_last, tick), job, overlap)
        )
