"""Enqueue jobs. The optimistic path assumes that all ids are new: 50 jobs per statement.

If an id exists already or a job has a unique key, the outcome of each job is decided before any
job is stored.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from nimburion.backends.sqlite.connection.database import Database, to_micros
from nimburion.backends.sqlite.keyed_limits import pass_turns
from nimburion.backends.sqlite.transitions import put_in_lane
from nimburion.core.job import (
    NO_JOB_OPTIONS,
    REPEAT_WINDOW,
    Enqueued,
    JobOptions,
    NewJob,
    limit_replaced_due,
)

_JOBS_PER_STATEMENT = 50
"""Jobs per statement. Fewer jobs need more statements; more cost more to bind (measured)."""
_COLUMNS_PER_JOB = 8
_MORE_ROW = ",\n(" + ", ".join("?" * _COLUMNS_PER_JOB) + ")"
_encode = msgspec.json.Encoder().encode

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
        db.names_to_notify.add(job.queue)


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


def compute_due(job: NewJob, now: int) -> int:
    """Return the due time of a job, in microseconds since 1970."""
    if job.at is not None:
        return to_micros(job.at)
    return now + max(0, to_micros(job.after)) if job.after else now


def enqueue_with_checks(db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Decide the outcome of each job from the stored jobs and the jobs before it in the call.

    If any job conflicts or its unique key is taken, no job is stored and the rest are refused.
    """
    known: dict[str, bytes] = dict(
        db.run("find_known_ids", _encode([job.id for job in jobs]).decode())
    )
    decisions = _Decisions(db, known)
    results = [decisions.decide(job) for job in jobs]
    if any(result.outcome in {"conflict", "taken"} for result in results):
        return [
            result if result.outcome in {"conflict", "taken"} else Enqueued(job.id, "refused")
            for job, result in zip(jobs, results, strict=True)
        ]
    new = [job for job, result in zip(jobs, results, strict=True) if result.outcome == "created"]
    if new:
        insert_jobs(db, new)
    for job in new:
        take_key(db, job.name, job.id, job.options)
    for replaced_id, job in decisions.replacing:
        replace_job(db, replaced_id, job)
    return results


class _Decisions:
    """Decides the outcomes of the jobs of one call, in their order."""

    __slots__ = ("_db", "_keys", "_known", "_replacements", "replacing")

    def __init__(self, db: Database, known: dict[str, bytes]) -> None:
        self._db = db
        self._known = known
        """Digests by id, of the stored jobs and of the new jobs before."""
        self._keys: dict[tuple[str, str], str] = {}
        """The new jobs that take unique keys, by name and key."""
        self._replacements: dict[str, tuple[str, bytes]] = {}
        self.replacing: list[tuple[str, NewJob]] = []
        """The jobs that replace another one, each with the id of that one."""

    def decide(self, job: NewJob) -> Enqueued:
        """Return the outcome of one job; record it for the jobs after it."""
        digest = job.compute_digest()
        if job.id in self._known:
            return Enqueued(job.id, "exists" if self._known[job.id] == digest else "conflict")
        key = job.options.unique_key
        if key is not None:
            repeated = None
            if job.options.on_duplicate == "replace":
                repeated = self._replacements.get(job.id) or self._db.fetch_one(
                    "find_replacement", job.id, self._db.now
                )
            if repeated is not None:
                if repeated[1] != digest:
                    return Enqueued(job.id, "conflict")
                return Enqueued(repeated[0], "replaced")
            holder = self._keys.get((job.name, key)) or find_key_holder(self._db, job.name, key)
            if holder is not None:
                return self._decide_duplicate(job, holder, digest)
            self._keys[job.name, key] = job.id
        self._known[job.id] = digest
        return Enqueued(job.id, "created")

    def _decide_duplicate(self, job: NewJob, holder: str, digest: bytes) -> Enqueued:
        if job.options.on_duplicate == "existing":
            return Enqueued(holder, "exists")
        if job.options.on_duplicate == "reject" or not (
            self._keys.get((job.name, job.options.unique_key or "")) == holder
            or self._db.fetch_one("find_waiting_job", holder)
        ):
            return Enqueued(holder, "taken")
        self._replacements[job.id] = holder, digest
        self.replacing.append((holder, job))
        return Enqueued(holder, "replaced")


def replace_job(db: Database, replaced_id: str, job: NewJob) -> None:
    """Give a waiting job the payload, options, queue, priority and due time of a new one."""
    seq, created_at, old_due, failures = db.fetch_one(  # type: ignore[misc]
        "find_waiting_job", replaced_id
    )
    max_wait = job.options.max_wait
    due = limit_replaced_due(
        compute_due(job, db.now),
        now=db.now,
        first=created_at,
        max_wait=None if max_wait is None else to_micros(max_wait),
    )
    due = max(due, old_due) if failures else due
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
    row = db.fetch_one("find_key_holder", name, key, db.now)
    return None if row is None else row[0]


def take_key(db: Database, name: str, job_id: str, options: JobOptions) -> None:
    """Assign its unique key to a stored job; do nothing for a job without a key."""
    if options.unique_key is None:
        return
    span, states = options.unique_for, options.unique_while
    until = None if span is None else db.now + to_micros(span)
    listed = None if states is None else _encode(states).decode()
    db.run("take_unique_key", name, options.unique_key, job_id, until, listed)
