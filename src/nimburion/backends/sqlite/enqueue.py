"""Enqueue jobs. The optimistic path assumes that all ids are new: 50 jobs per statement.

If an id exists already or a job has a unique key, the outcome of each job is decided before any
job is stored.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from nimburion.backends.planning.enqueue import (
    KeyHolder,
    KnownJobs,
    Replacement,
    UniqueKey,
    compute_due,
    compute_key_end,
    compute_replaced_due,
    holds_key,
    plan_enqueue,
)
from nimburion.backends.sqlite.connection.database import Database, to_micros
from nimburion.backends.sqlite.limits import pass_turns
from nimburion.backends.sqlite.settle import put_in_lane
from nimburion.core.job import (
    NO_JOB_OPTIONS,
    REPEAT_WINDOW,
    Enqueued,
    JobOptions,
    NewJob,
    State,
)

_JOBS_PER_STATEMENT = 50
"""Jobs per statement. Fewer jobs need more statements; more cost more to bind (measured)."""
_COLUMNS_PER_JOB = 8
_MORE_ROW = ",\n(" + ", ".join("?" * _COLUMNS_PER_JOB) + ")"
_encode = msgspec.json.Encoder().encode
_decode_states = msgspec.json.Decoder(frozenset[State]).decode

Columns = list[object]


def enqueue_jobs(db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Store jobs atomically; see `Producing.enqueue`."""
    first = jobs[0]
    try:
        if len(jobs) == 1 and first.options is NO_JOB_OPTIONS and db.has_cached_lane(first):
            # If the id exists already, the first write fails, so there is nothing to undo. After
            # other errors the writer rolls back. A caller's connection never comes here, because
            # its cache of lanes is empty.
            insert_jobs(db, jobs)
            return [Enqueued(first.id, "created")]
        if any(
            job.options.unique_key is not None for job in jobs if job.options is not NO_JOB_OPTIONS
        ):
            return enqueue_with_checks(db, jobs)
        with db.savepoint():
            insert_jobs(db, jobs)
    except sqlite3.IntegrityError:  # an id exists already, or numbers of lanes were old
        db.update_cache(again=True)
        return enqueue_with_checks(db, jobs)
    return [Enqueued(job.id, "created") for job in jobs]


def insert_jobs(db: Database, jobs: Sequence[NewJob]) -> None:
    """Insert jobs, and add each to its lane or to the scheduled jobs.

    Raises `sqlite3.IntegrityError` if an id exists already, or if the cache of lanes was old.
    """
    now = latest = db.now
    newest: int | None = None
    for start in range(0, len(jobs), _JOBS_PER_STATEMENT):
        part = jobs[start : start + _JOBS_PER_STATEMENT]
        values = make_columns(db, part)
        latest = max(latest, *values[3::_COLUMNS_PER_JOB])  # type: ignore[call-overload]
        values.insert(1, db.numbering)
        text = db.statements["insert_jobs"] + _MORE_ROW * (len(part) - 1)
        newest = db.connection.execute(text, values).lastrowid
    assert newest is not None
    last_before = newest - len(jobs)  # the transaction has the write lock, so no seq is left out
    db.run("insert_new_ready", last_before, now)
    if latest > now:
        db.run("insert_new_scheduled", last_before, now)
    for job in jobs:
        db.names_to_notify[job.queue] += 1


def make_columns(db: Database, jobs: Sequence[NewJob]) -> Columns:
    """Return the parameters of `insert_jobs` for these jobs, one job after the other."""
    now = db.now
    values: Columns = []
    queue = name = tenant = None
    lane = 0
    for job in jobs:
        options = own = None
        if job.options is not NO_JOB_OPTIONS:
            options, own = _encode(job.options).decode(), job.options.fair_tenant
        if job.name != name or job.queue != queue or own != tenant:
            queue, name, tenant = job.queue, job.name, own
            lane = (
                db.get_or_add_lane(queue, name)
                if tenant is None
                else db.find_or_add_tenant_lane(queue, name, tenant)
            )
        values += (
            job.id,
            lane,
            job.priority,
            compute_due(job, now) if job.after or job.at is not None else now,
            now,
            options,
            job.compute_digest(),
            job.payload,
        )
    return values


def enqueue_with_checks(db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Decide the outcome of each job before any job is stored."""
    plan = plan_enqueue(jobs, read_known_jobs(db, jobs))
    if plan.new:
        insert_jobs(db, plan.new)
    for job in plan.new:
        take_key(db, job.name, job.id, job.options)
    for replaced_id, job in plan.replacing:
        replace_job(db, replaced_id, job)
    return plan.results


def read_known_jobs(db: Database, jobs: Sequence[NewJob]) -> KnownJobs:
    """Read what is known about the ids and the unique keys of these jobs."""
    digests: dict[str, bytes] = dict(
        db.run("find_known_ids", _encode([job.id for job in jobs]).decode())
    )
    holders: dict[UniqueKey, KeyHolder] = {}
    replacements: dict[str, Replacement] = {}
    for job in jobs:
        key = job.options.unique_key
        if key is None or job.id in digests:
            continue
        replaces = job.options.on_duplicate == "replace"
        if replaces:
            row = db.fetch_one("find_replacement", job.id, db.now)
            if row is not None:
                replacements[job.id] = Replacement(*row)
                continue
        if (job.name, key) in holders and not replaces:
            continue
        holder = find_key_holder(db, job.name, key)
        if holder is not None:
            is_waiting = replaces and db.fetch_one("find_waiting_job", holder) is not None
            holders[job.name, key] = KeyHolder(holder, is_waiting)
    return KnownJobs(digests, holders, replacements)


def replace_job(db: Database, replaced_id: str, job: NewJob) -> None:
    """Give a waiting job the payload, options, queue, priority and due time of a new one."""
    seq, created_at, old_due, failures = db.fetch_one(  # type: ignore[misc]
        "find_waiting_job", replaced_id
    )
    due = compute_replaced_due(
        job, db.now, created_at=created_at, old_due=old_due, failures=failures
    )
    db.update_cache()
    lane = db.find_or_add_tenant_lane(job.queue, job.name, job.options.fair_tenant)
    db.run("delete_ready", seq)
    db.run("delete_scheduled", seq)
    if not db.run("delete_parked", seq).rowcount:
        pass_turns(db, db.fetch_value("get_lane_of_job", seq), seq)
    db.run("replace_job", seq, lane, job.priority, due, _encode(job.options).decode(), job.payload)
    put_in_lane(db, lane, job.priority, due, seq, retry=failures > 0)
    take_key(db, job.name, replaced_id, job.options)
    until = db.now + to_micros(REPEAT_WINDOW)
    db.run("put_replacement", job.id, replaced_id, job.compute_digest(), until)


def find_key_holder(db: Database, name: str, key: str) -> str | None:
    """Return the id of the job that holds a unique key now, or None."""
    row = db.fetch_one("find_unique_key", name, key)
    if row is None:
        return None
    job_id, valid_until, listed = row
    states = state = None
    if listed is not None:
        states, found = _decode_states(listed), db.fetch_one("get_job_state", job_id, db.now)
        state = None if found is None else State(found[0])
    return job_id if holds_key(db.now, valid_until, states, state) else None


def take_key(db: Database, name: str, job_id: str, options: JobOptions) -> None:
    """Assign its unique key to a stored job; do nothing for a job without a key."""
    if options.unique_key is None:
        return
    states, until = options.unique_while, compute_key_end(options, db.now)
    listed = None if states is None else _encode(states).decode()
    db.run("take_unique_key", name, options.unique_key, job_id, until, listed)
