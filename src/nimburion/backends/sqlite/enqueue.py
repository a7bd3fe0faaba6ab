"""The way in. Hopeful first: all ids are new, one statement stores fifty jobs. Where an id is
kept already, or a unique key is asked for, each job is looked at before anything is stored."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite.connection.database import Database, micros
from nimburion.core.job import NO_OPTIONS, Enqueued, NewJob

_ROWS = 50
"""Jobs a statement: fewer cost more steps, more cost more to prepare and bind (measured)."""
_VALUES = 8
_REPEATED = ",\n(" + ", ".join("?" * _VALUES) + ")"
_encode = msgspec.json.Encoder().encode

Fields = list[object]


def enqueue(db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Store jobs; see `Backend.enqueue`."""
    if any(job.options.unique_key is not None for job in jobs if job.options is not NO_OPTIONS):
        return enqueue_carefully(db, jobs)
    try:
        with db.savepoint():
            store(db, jobs)
    except sqlite3.IntegrityError:
        return enqueue_carefully(db, jobs)
    return [Enqueued(job.id, "created") for job in jobs]


def store(db: Database, jobs: Sequence[NewJob]) -> None:
    """Insert jobs and put each where it waits; fails when an id is kept."""
    last = db.value("job_last")
    latest = db.now
    for start in range(0, len(jobs), _ROWS):
        part = jobs[start : start + _ROWS]
        values = values_of(db, part)
        latest = max(latest, *values[3::_VALUES])  # type: ignore[call-overload]
        db.connection.execute(db.sql["job_add"] + _REPEATED * (len(part) - 1), values)
    db.run("ready_add_new", last, db.now)
    if latest > db.now:
        db.run("scheduled_add_new", last, db.now)
    db.ring({job.queue for job in jobs})


def values_of(db: Database, jobs: Sequence[NewJob]) -> Fields:
    """The columns of `job_add`, job after job."""
    now = db.now
    values: Fields = []
    queue = name = None
    lane = 0
    for job in jobs:
        if job.name != name or job.queue != queue:
            queue, name = job.queue, job.name
            lane = db.lane_of(queue, name)
        options = None if job.options is NO_OPTIONS else _encode(job.options).decode()
        values += (
            job.id, lane, job.priority, due_of(job, now), now, options, job.digest(), job.payload
        )  # fmt: skip
    return values


def due_of(job: NewJob, now: int) -> int:
    """When a job is due, in microseconds."""
    if job.at is not None:
        return micros(job.at)
    return now + max(0, micros(job.after)) if job.after else now


def enqueue_carefully(db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Decide each job by what is kept and by those before it in the call."""
    known: dict[str, bytes] = dict(db.run("job_known", _encode([job.id for job in jobs]).decode()))
    keys: dict[tuple[str, str], str] = {}
    results = [decide(db, job, known, keys) for job in jobs]
    if any(result.outcome in {"conflict", "taken"} for result in results):
        return [
            result if result.outcome in {"conflict", "taken"} else Enqueued(job.id, "refused")
            for job, result in zip(jobs, results, strict=True)
        ]
    new = [job for job, result in zip(jobs, results, strict=True) if result.outcome == "created"]
    if new:
        store(db, new)
    for job in new:
        take_key(db, job)
    return results


def decide(
    db: Database, job: NewJob, known: dict[str, bytes], keys: dict[tuple[str, str], str]
) -> Enqueued:
    """What becomes of one job; notes its id and key for the jobs behind it."""
    if job.id in known:
        same = known[job.id] == job.digest()
        return Enqueued(job.id, "exists" if same else "conflict")
    key = job.options.unique_key
    if key is not None:
        holder = keys.get((job.name, key)) or holder_of(db, job.name, key)
        if holder is not None:
            lenient = job.options.on_duplicate == "existing"
            return Enqueued(holder, "exists" if lenient else "taken")
        keys[job.name, key] = job.id
    known[job.id] = job.digest()
    return Enqueued(job.id, "created")


def holder_of(db: Database, name: str, key: str) -> str | None:
    """The id of the job that holds a unique key now."""
    row = db.one("unique_holder", name, key, db.now)
    return None if row is None else row[0]


def take_key(db: Database, job: NewJob) -> None:
    """Let a stored job hold its unique key, if it has one."""
    if job.options.unique_key is None:
        return
    span = job.options.unique_for
    until = None if span is None else db.now + micros(span)
    db.run("unique_take", job.name, job.options.unique_key, job.id, until)
