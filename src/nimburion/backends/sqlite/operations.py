"""The operations of operators (cancel, change jobs, pause, prune) and the ticks of schedules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import msgspec

from nimburion.backends.sqlite import records
from nimburion.backends.sqlite.connection.database import MICRO, TENANT_UNIT, Database, to_micros
from nimburion.backends.sqlite.enqueue import enqueue_jobs, find_key_holder, take_key
from nimburion.backends.sqlite.settle import (
    CANCELLED,
    COMPLETED,
    FAILED,
    cancel_waiting,
    put_in_lane,
)
from nimburion.backends.sqlite.statistics import prune_statistics
from nimburion.backends.sqlite.tenants import forget_tenants
from nimburion.backends.waiters import ALL_WORKERS, make_session_name
from nimburion.core.bulk_operations import BulkAction, check_job_ids
from nimburion.core.errors import JobNotFound
from nimburion.core.job import FINISHED, JobOptions, NewJob, State
from nimburion.core.operations import Cancellation, JobChanges, Retention
from nimburion.core.queries import Pause
from nimburion.core.records import NewRecord, RecordChange
from nimburion.core.schedules import Fired, Overlap, decode_schedule, encode_schedule

ENDED_SESSION_RETENTION = 86_400 * MICRO
"""Microseconds for which the id of an ended session is kept."""
MAX_CHECKED = 10_000
"""The most lanes, and the most tenants, that one prune checks."""
MAX_LATER_JOBS = 100_000
"""With more scheduled or parked jobs, no number is freed: all of these jobs must be read."""

_encode = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


def cancel(db: Database, job_id: str) -> Cancellation:
    """See `Producing.cancel`."""
    row = db.fetch_one("find_job", job_id)
    if row is None:
        raise JobNotFound(job_id)
    seq, state, lane = row
    if state != 0:
        return Cancellation.FINISHED
    sessions = db.run("request_cancel", seq).fetchall()
    if sessions:
        db.notify(make_session_name(session_id) for (session_id,) in sessions)
        return Cancellation.REQUESTED
    cancel_waiting(db, seq, lane)
    return Cancellation.CANCELLED


def pause_queue(db: Database, queue: str, new: Pause | None) -> None:
    """Pause a queue, or resume it if `new` is None."""
    if new is None:
        db.run("resume_queue", queue)
        db.names_to_notify[queue] += ALL_WORKERS
    else:
        until = None if new.until is None else to_micros(new.until)
        db.run("pause_queue", queue, new.by, new.reason, db.now, until)


def change_jobs(
    db: Database,
    action: BulkAction,
    job_ids: Sequence[str],
    change: RecordChange | None,
    states: Collection[State] | None,
) -> JobChanges:
    """See `Maintaining.change_jobs`."""
    check_job_ids(job_ids)
    if change is not None and not records.has_version(db, change):
        return JobChanges([])
    allowed = action.narrow_states(states)
    if allowed != action.states:
        job_ids = _list_in_states(db, job_ids, allowed)
    changed, held = _CHANGES[action](db, job_ids) if job_ids else ([], [])
    record = None
    if change is not None:
        record = records.write_change(db, change, len(changed), len(held))
    return JobChanges(changed, held, record)


def _list_in_states(
    db: Database, job_ids: Sequence[str], states: frozenset[State]
) -> Sequence[str]:
    """Return the ids of those of these jobs that are in one of the states."""
    found = ((job_id, db.fetch_one("get_job_state", job_id, db.now)) for job_id in job_ids)
    return [job_id for job_id, row in found if row is not None and row[0] in states]


def _replay(db: Database, job_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    replayed: list[str] = []
    held: list[str] = []
    for job_id in job_ids:
        row = db.fetch_one("get_dead_letter", job_id)
        if row is None:
            continue
        seq, lane, priority, options = row
        if not retake_key(db, job_id, lane, options):
            held.append(job_id)
            continue
        if lane >= TENANT_UNIT:  # the number of its tenant may mean another one by now
            names, tenant = db.get_lane(lane), _decode_options(options).fair_tenant
            lane = db.find_or_add_tenant_lane(names.queue, names.name, tenant)
        db.run("reset_dead_letter", seq, db.now, lane)
        db.run("count_finished", lane, FAILED, -1)
        put_in_lane(db, lane, priority, db.now, seq, retry=False)
        replayed.append(job_id)
    return replayed, held


def retake_key(db: Database, job_id: str, lane: int, options: str | None) -> bool:
    """Assign the unique key to a job again, if no other job holds it.

    Returns False if another job holds the key; True also for a job without a key.
    """
    if options is None:
        return True
    stored_options = _decode_options(options)
    if stored_options.unique_key is None:
        return True
    name = db.get_lane(lane).name
    holder = find_key_holder(db, name, stored_options.unique_key)
    if holder is not None and holder != job_id:
        return False
    if holder is None:
        take_key(db, name, job_id, stored_options)
    return True


def _make_due(db: Database, job_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    changed = []
    for job_id in job_ids:
        row = db.fetch_one("find_later_job", job_id, db.now)
        if row is None:
            continue
        seq, lane, priority, failures = row
        db.run("delete_scheduled", seq)
        db.run("set_due", seq, db.now)
        put_in_lane(db, lane, priority, db.now, seq, retry=failures > 0)
        changed.append(job_id)
    return changed, []


def _cancel(db: Database, job_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    cancelled = []
    for job_id in job_ids:
        try:
            if cancel(db, job_id) is not Cancellation.FINISHED:
                cancelled.append(job_id)
        except JobNotFound:
            continue
    return cancelled, []


def _delete(db: Database, job_ids: Sequence[str]) -> tuple[list[str], list[str]]:
    found = db.run("list_finished_jobs", _encode(job_ids).decode()).fetchall()
    if found:
        delete_jobs(db, _encode([seq for seq, _ in found]).decode())
    deleted = {job_id for _, job_id in found}
    return [job_id for job_id in job_ids if job_id in deleted], []


_CHANGES: Mapping[BulkAction, Callable[[Database, Sequence[str]], tuple[list[str], list[str]]]] = (
    MappingProxyType(
        {
            BulkAction.REPLAY: _replay,
            BulkAction.RUN_NOW: _make_due,
            BulkAction.CANCEL: _cancel,
            BulkAction.DELETE: _delete,
        }
    )
)
"""Per action: change jobs, and return which were changed, and which could not be."""


def delete_jobs(db: Database, listed: str) -> None:
    """Delete finished jobs with their history and progress. `listed` is a JSON array of seqs."""
    db.run("delete_attempt_errors", listed)
    db.run("delete_progress", listed)
    db.run("uncount_jobs", listed)
    db.run("delete_jobs", listed)


def prune(db: Database, keep: Retention, limit: int) -> int:
    """See `Maintaining.prune`."""
    db.run("delete_ended_sessions", db.now - ENDED_SESSION_RETENTION)
    db.run("delete_expired_keys", db.now)
    db.run("delete_expired_replacements", db.now)
    prune_statistics(db)
    db.run("prune_limit_uses", db.now)
    forget_tenants(db)
    left = limit
    for state, seconds in (
        (COMPLETED, keep.completed),
        (CANCELLED, keep.completed),
        (FAILED, keep.failed),
    ):
        if seconds is not None and left > 0:
            left -= delete_listed(
                db, db.fetch_value("list_older", state, db.now - to_micros(seconds), left)
            )
    if keep.completed_max is not None and left > 0:
        left -= delete_listed(db, db.fetch_value("list_excess", keep.completed_max, left))
    if keep.results is not None and left > 0:
        left -= db.run("delete_old_results", db.now - to_micros(keep.results), left).rowcount
    free_numbers(db)
    return limit - left


def free_numbers(db: Database) -> None:
    """Delete lanes and tenants without jobs. Each call checks some and continues after them.

    A job that has ended keeps its lane. It needs no tenant: a replay finds that of its options.
    """
    if db.fetch_value("has_many_later_jobs", MAX_LATER_JOBS):
        return
    lanes = _delete_idle(db, "list_next_lanes", "delete_idle_lanes")
    if lanes:
        db.run("delete_counts_of_lanes", _encode(lanes).decode())
    tenants = _delete_idle(db, "list_next_tenants", "delete_idle_tenants")
    if lanes or tenants:
        db.change_numbering()


def _delete_idle(db: Database, list_next: str, delete_idle: str) -> list[int]:
    """Delete the idle rows among the next ones; return their numbers."""
    last = db.last_checked.get(list_next, 0)
    numbers = [number for (number,) in db.run(list_next, last, MAX_CHECKED)]
    db.last_checked[list_next] = numbers[-1] if len(numbers) == MAX_CHECKED else 0
    return [number for (number,) in db.run(delete_idle, _encode(numbers).decode())]


def delete_listed(db: Database, listed: str) -> int:
    """Delete the jobs of a JSON array of seqs; return their number."""
    seqs: Sequence[int] = _decode_seqs(listed)
    if seqs:
        delete_jobs(db, listed)
    return len(seqs)


def fire(
    db: Database, name: str, ticks: tuple[float | None, float], job: NewJob, overlap: Overlap
) -> Fired:
    """See `Scheduling.fire`. `ticks` holds the expected last tick and the new one."""
    expected_last, tick = ticks
    record = records.get_record(db, "schedule", name)
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
    records.put_record(db, new, None, None)
    return Fired("skipped") if stored is None else Fired("fired", stored)


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
