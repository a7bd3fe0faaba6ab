"""Storage for the scheduler: schedules, and the one step that decides a tick."""

from __future__ import annotations

from nimburion.backends.sqlite.database import Database
from nimburion.backends.sqlite.enqueueing import enqueue
from nimburion.backends.sqlite.maintaining import cancel
from nimburion.core.job import FINISHED, NewJob, State
from nimburion.core.reading import Fired, Overlap, ScheduleRecord


def put_schedule(db: Database, schedule: ScheduleRecord) -> None:
    """See `Backend.put_schedule`."""
    db.run(
        "schedule_put", schedule.name, schedule.spec, schedule.owner, schedule.paused,
        schedule.last_tick, schedule.last_job,
    )  # fmt: skip


def list_schedules(db: Database) -> list[ScheduleRecord]:
    """See `Backend.list_schedules`."""
    return [
        ScheduleRecord(
            name=name, spec=spec, owner=owner, paused=bool(paused), last_tick=tick, last_job=job
        )
        for name, spec, owner, paused, tick, job in db.run("schedule_all")
    ]


def pause_schedule(db: Database, name: str, *, paused: bool) -> bool:
    """See `Backend.pause_schedule`."""
    return db.run("schedule_pause", name, paused).rowcount > 0


def delete_schedule(db: Database, name: str) -> bool:
    """See `Backend.delete_schedule`."""
    return db.run("schedule_drop", name).rowcount > 0


def fire(
    db: Database, name: str, move: tuple[float | None, float], job: NewJob, overlap: Overlap
) -> Fired:
    """See `Backend.fire`; `move` is from which last tick to which."""
    expected_last, tick = move
    row = db.one("schedule_get", name)
    if row is None:
        return Fired("missing")
    paused, last_tick, last_job = row
    if paused:
        return Fired("paused")
    if last_tick != expected_last:
        return Fired("moved")
    if last_job is not None and not makes_way(db, last_job, overlap):
        db.run("schedule_move", name, tick, None)
        return Fired("skipped")
    (result,) = enqueue(db, [job])
    stored = result.outcome in {"created", "exists"}
    db.run("schedule_move", name, tick, result.id if stored else None)
    return Fired("fired", result.id) if stored else Fired("skipped")


def makes_way(db: Database, last_job: str, overlap: Overlap) -> bool:
    """Whether the schedule's previous job lets the next one in."""
    row = db.one("job_state", last_job, db.now)
    if row is None or overlap == "allow" or State(row[0]) in FINISHED:
        return True
    if overlap == "cancel_previous":
        cancel(db, last_job)
        return True
    return overlap == "queue_one" and row[0] not in {State.PENDING, State.SCHEDULED}
