"""`PostgresScheduling`: fire the ticks of schedules."""

from __future__ import annotations

from nimburion.backends.postgres import enqueue as enqueueing
from nimburion.backends.postgres.database import PostgresDatabase
from nimburion.backends.postgres.encoding import encode_lookup_text
from nimburion.backends.server.encoding import decode_id
from nimburion.core.backend import Scheduling
from nimburion.core.job import NewJob
from nimburion.core.schedules import Fired, Overlap, encode_tick


class PostgresScheduling(Scheduling):
    """The operations of `Scheduling` for the PostgreSQL backend."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:
        arguments = enqueueing.encode_arguments([job])
        places = ", ".join(f"${n}" for n in range(1, 6 + len(arguments)))
        (row,) = await self._database.fetch(
            f"SELECT * FROM {{schema}}.fire_schedule_1({places})",  # noqa: S608
            self._database.now(),
            encode_lookup_text(name),
            None if expected_last is None else encode_tick(expected_last),
            encode_tick(tick),
            overlap,
            *arguments,
        )
        outcome, job_id, cancel_notified = row
        queue = [] if job_id is None else [job.queue]
        self._database.notify([*queue, *(cancel_notified or ())])
        return Fired(outcome, None if job_id is None else decode_id(job_id))
