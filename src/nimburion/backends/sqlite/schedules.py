"""`SQLiteScheduling`: fire the ticks of schedules."""

from __future__ import annotations

from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.producing import cancel, enqueue_jobs
from nimburion.backends.sqlite.records import get_record, put_record
from nimburion.core.backend import Scheduling
from nimburion.core.job import FINISHED, Enqueued, NewJob, State
from nimburion.core.schedules import Fired, Overlap, check_tick, end_tick


class SQLiteScheduling(Scheduling):
    """The operations of `Scheduling` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def fire(
        self, name: str, expected_last: float | None, tick: float, job: NewJob, overlap: Overlap
    ) -> Fired:

        def fire(db: Database) -> Fired:
            schedule = check_tick(get_record(db, "schedule", name), expected_last)
            if isinstance(schedule, Fired):
                return schedule
            result: Enqueued | None = None
            if schedule.last_job is None or allows_next_job(db, schedule.last_job, overlap):
                (result,) = enqueue_jobs(db, [job])
            record, fired = end_tick(schedule, tick, result)
            put_record(db, record)
            return fired

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
