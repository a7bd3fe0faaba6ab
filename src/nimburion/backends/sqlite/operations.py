"""The operations of operators (cancel, pause, replay, delete, prune, audit) and of schedules."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite import transitions
from nimburion.backends.sqlite.connection.database import MICRO, TENANT_UNIT, Database, to_micros
from nimburion.backends.sqlite.enqueue import enqueue_jobs, find_key_holder, take_key
from nimburion.backends.sqlite.queries import find_matching
from nimburion.backends.sqlite.statistics import prune_statistics
from nimburion.backends.sqlite.tenants import forget_tenants
from nimburion.backends.sqlite.transitions import CANCELLED, COMPLETED, FAILED
from nimburion.backends.waiters import make_session_name
from nimburion.core.audit import AuditRecord
from nimburion.core.errors import JobNotFound
from nimburion.core.job import FINISHED, JobOptions, NewJob, State
from nimburion.core.operations import Cancellation, Replayed, Retention
from nimburion.core.queries import JobFilter, Pause
from nimburion.core.schedules import Fired, Overlap, ScheduleRecord

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
    transitions.cancel_waiting(db, seq, lane)
    return Cancellation.CANCELLED


def pause_queue(db: Database, queue: str, new: Pause | None) -> None:
    """Pause a queue, or resume it if `new` is None."""
    if new is None:
        db.run("resume_queue", queue)
        db.notify([queue])
    else:
        until = None if new.until is None else to_micros(new.until)
        db.run("pause_queue", queue, new.by, new.reason, db.now, until)


def put_audit(db: Database, record: AuditRecord, keep: int) -> None:
    """See `Maintaining.put_audit`."""
    db.run("put_audit_record", record.id, db.now, _encode(record).decode())
    db.run("delete_old_audit_records", keep)


def replay(db: Database, which: JobFilter, limit: int, after: str | None) -> Replayed:
    """See `Maintaining.replay`."""
    which.check_selects()
    if which.states is not None and State.FAILED not in which.states:
        return Replayed([], [])
    failed = msgspec.structs.replace(which, states=frozenset({State.FAILED}))
    found = find_matching(db, failed, limit, after)
    replayed = Replayed([], [], found.next)
    for seq in found.seqs:
        job_id, lane, priority, options = db.fetch_one("get_dead_letter", seq)  # type: ignore[misc]
        if not retake_key(db, job_id, lane, options):
            replayed.held.append(job_id)
            continue
        if lane >= TENANT_UNIT:  # the number of its tenant may mean another one by now
            names, tenant = db.get_lane(lane), _decode_options(options).fair_tenant
            lane = db.find_or_add_tenant_lane(names.queue, names.name, tenant)
        db.run("reset_dead_letter", seq, db.now, lane)
        db.run("count_finished", lane, FAILED, -1)
        transitions.put_in_lane(db, lane, priority, db.now, seq, retry=False)
        replayed.ids.append(job_id)
    return replayed


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


def make_due(db: Database, job_ids: Sequence[str]) -> list[str]:
    """See `Maintaining.make_due`."""
    changed = []
    for job_id in dict.fromkeys(job_ids):
        row = db.fetch_one("find_later_job", job_id, db.now)
        if row is None:
            continue
        seq, lane, priority, failures = row
        db.run("delete_scheduled", seq)
        db.run("set_due", seq, db.now)
        transitions.put_in_lane(db, lane, priority, db.now, seq, retry=failures > 0)
        changed.append(job_id)
    return changed


def delete(db: Database, which: JobFilter, limit: int) -> list[str]:
    """See `Maintaining.delete`."""
    which.check_selects()
    finished = which.finished_states
    if not finished:
        return []
    seqs = find_matching(db, msgspec.structs.replace(which, states=finished), limit, None).seqs
    listed = _encode(seqs).decode()
    ids = dict(db.run("list_job_ids", listed))
    delete_jobs(db, listed)
    return [ids[seq] for seq in seqs]


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
    db.run("prune_limit_keys", db.now)
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


def put_schedule(db: Database, schedule: ScheduleRecord) -> None:
    """See `Scheduling.put_schedule`."""
    db.run(
        "put_schedule", schedule.name, schedule.spec, schedule.owner, schedule.paused,
        schedule.last_tick, schedule.last_job,
    )  # fmt: skip


def list_schedules(db: Database) -> list[ScheduleRecord]:
    """See `Scheduling.list_schedules`."""
    return [
        ScheduleRecord(
            name=name, spec=spec, owner=owner, paused=bool(paused), last_tick=tick, last_job=job
        )
        for name, spec, owner, paused, tick, job in db.run("list_schedules")
    ]


def pause_schedule(db: Database, name: str, *, paused: bool) -> bool:
    """See `Scheduling.pause_schedule`."""
    return db.run("pause_schedule", name, paused).rowcount > 0


def delete_schedule(db: Database, name: str) -> bool:
    """See `Scheduling.delete_schedule`."""
    return db.run("delete_schedule", name).rowcount > 0


def fire(
    db: Database, name: str, ticks: tuple[float | None, float], job: NewJob, overlap: Overlap
) -> Fired:
    """See `Scheduling.fire`. `ticks` holds the expected last tick and the new one."""
    expected_last, tick = ticks
    row = db.fetch_one("get_schedule", name)
    if row is None:
        return Fired("missing")
    paused, last_tick, last_job = row
    if paused:
        return Fired("paused")
    if last_tick != expected_last:
        return Fired("moved")
    if last_job is not None and not allows_next_job(db, last_job, overlap):
        db.run("save_tick", name, tick, None)
        return Fired("skipped")
    (result,) = enqueue_jobs(db, [job])
    stored = result.outcome in {"created", "exists", "replaced"}
    db.run("save_tick", name, tick, result.id if stored else None)
    return Fired("fired", result.id) if stored else Fired("skipped")


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
