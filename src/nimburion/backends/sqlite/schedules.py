"""`SQLiteScheduling`: store schedules and fire their ticks."""

from __future__ import annotations

from nimburion.backends.sqlite import operations
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord


class SQLiteScheduling(Scheduling):
    """The operations of `Scheduling` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        await self._file.write(lambda db: operations.put_schedule(db, schedule))

    async def list_schedules(self) -> list[ScheduleRecord]:
        return await self._file.read(operations.list_schedules)

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        return await self._file.write(lambda db: operations.pause_schedule(db, name, paused=paused))

    async def delete_schedule(self, name: str) -> bool:
        return await self._file.write(lambda db: operations.delete_schedule(db, name))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        return await self._file.write(
            lambda db: operations.fire(db, name, (expected_last, tick), job, overlap)
        )
