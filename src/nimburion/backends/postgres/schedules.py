"""`PostgresScheduling`: store schedules and fire their ticks."""

from __future__ import annotations

from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres import operations
from nimburion.backends.postgres.database import PostgresDatabase
from nimburion.backends.postgres.encoding import encode_lookup_text
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord


class PostgresScheduling(Scheduling):
    """The operations of `Scheduling` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def put_schedule(self, schedule: ScheduleRecord) -> None:
        arguments = operations.encode_schedule(schedule)
        await self._database.fetch(
            "SELECT {schema}.put_schedule_1($1, $2, $3, $4, $5, $6)", *arguments
        )

    async def list_schedules(self) -> list[ScheduleRecord]:
        columns = "name, spec, owner, paused, last_tick, last_job"
        statement = f"SELECT {columns} FROM {{schema}}.schedule"  # noqa: S608
        return operations.decode_schedules(await self._database.fetch(statement))

    async def pause_schedule(self, name: str, *, paused: bool) -> bool:
        statement = "UPDATE {schema}.schedule SET paused = $2 WHERE name = $1 RETURNING 1"
        return bool(await self._database.fetch(statement, encode_lookup_text(name), paused))

    async def delete_schedule(self, name: str) -> bool:
        statement = "DELETE FROM {schema}.schedule WHERE name = $1 RETURNING 1"
        return bool(await self._database.fetch(statement, encode_lookup_text(name)))

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        arguments = enqueueing.encode_arguments([job])
        places = ", ".join(f"${n}" for n in range(1, 6 + len(arguments)))
        (row,) = await self._database.fetch(
            f"SELECT * FROM {{schema}}.fire_schedule_1({places})",  # noqa: S608
            self._database.now(),
            encode_lookup_text(name),
            expected_last,
            tick,
            overlap,
            *arguments,
        )
        *decision, cancel_notified = row
        fired = operations.decode_fired(decision)
        queue = [] if fired.job_id is None else [job.queue]
        self._database.notify([*queue, *([] if cancel_notified is None else [cancel_notified])])
        return fired
