"""`SQLiteScheduling`: fire the ticks of schedules."""

from __future__ import annotations

import msgspec

from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.producing import cancel, enqueue_jobs
from nimburion.backends.sqlite.records import get_record, put_record
from nimburion.core.backend import Scheduling
from nimburion.core.job import FINISHED, NewJob, State
from nimburion.core.records import NewRecord
from nimburion.core.schedules import Fired, Overlap, decode_schedule, encode_schedule


class SQLiteScheduling(Scheduling):
    """The operations of `Scheduling` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:

        def fire(db: Database) -> Fired:
            record = get_record(db, "schedule", name)
            if record is None:
                return Fired("missing")
            schedule = decode_schedule(record)
            if schedule.paused:
                return Fired("paused")
            if schedule.last_tick != expected_last:
                return Fired("moved")
            stored: str | None = None
            if schedule.last_job is None or allows_next_job(db, schedule.last_job, overlap):
                (result,) = enqueue_jobs(db, [job])
                stored = result.id if result.outcome in {"created", "exists", "replaced"} else None
            schedule = msgspec.structs.replace(
                schedule, last_tick=tick, last_job=stored or schedule.last_job
            )
            new = NewRecord(kind="schedule", id=name, body=encode_schedule(schedule))
            put_record(db, new)
            return Fired("skipped") if stored is None else Fired("fired", stored)

        return await self._file.write(fire)


def allows_next_job(db: Database, last_job: str, overlap: Overlap) -> bool:
    """Return whether the overlap policy allows a new job while the previous job may be unfinished.

    `cancel_previous` cancels the previous job.
    """
    row = db.fetch_one("get_job_state", last_job, db.now)
    if row is None or overlap == "allow" or State(row[0]) in FINISHED:
        return True
    if overlap == "cancel_previous":
        cancel(db, last_job)
        return True
    return overlap == "queue_one" and row[0] not in {State.PENDING, State.SCHEDULED}
