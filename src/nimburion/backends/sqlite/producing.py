"""`SQLiteProducing`: enqueue and cancel jobs, and send signals to them.

The optimistic path assumes that all ids are new: 50 jobs per statement. If an id exists already or
a job has a unique key, the outcome of each job is decided before any job is stored.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from nimburion.backends.caller_connections.registry import find_adapter
from nimburion.backends.planning.enqueue import (
    KeyHolder,
    KnownJobs,
    Replacement,
    UniqueKey,
    compute_due,
    compute_replaced_due,
    is_stored,
    plan_enqueue,
)
from nimburion.backends.planning.flows import (
    add_ended_flows,
    refuse_growth,
    refuse_strangers,
    select_new_flows,
)
from nimburion.backends.sqlite.connection.database import Database
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.flows import (
    ask_to_end,
    count_stored_members,
    grow_flows,
    insert_flows,
    read_flows,
    read_stored_members,
    suspend_new_jobs,
)
from nimburion.backends.sqlite.limits import pass_turns
from nimburion.backends.sqlite.records import get_record, put_record
from nimburion.backends.sqlite.settle import cancel_waiting
from nimburion.backends.sqlite.transactions import make_transaction
from nimburion.backends.sqlite.unique_keys import find_key_holder, take_key
from nimburion.backends.sqlite.waiting import put_in_lane
from nimburion.backends.waiters import make_session_name
from nimburion.core.backend import BlockingProducing, Producing, Transactional
from nimburion.core.errors import JobNotFound
from nimburion.core.exchange import Lane
from nimburion.core.flows import NewFlow
from nimburion.core.ids import compute_digest
from nimburion.core.job import FINISHED, NO_JOB_OPTIONS, REPEAT_WINDOW, Enqueued, NewJob, State
from nimburion.core.maintenance import Cancellation
from nimburion.core.schedules import Fired, Overlap, check_tick, end_tick
from nimburion.core.timing.clock import MICRO, to_micros
from nimburion.core.transactions import (
    MAX_ENQUEUE_COUNTS,
    CallerConnection,
    EnqueueCount,
    Transaction,
    sum_enqueue_counts,
)

if TYPE_CHECKING:
    from nimburion.core.runs import NewSignal, SignalOutcome

_JOBS_PER_STATEMENT = 50
"""Jobs per statement. Fewer jobs need more statements; more cost more to bind (measured)."""
_COLUMNS_PER_JOB = 8
_MORE_ROW = ",\n(" + ", ".join("?" * _COLUMNS_PER_JOB) + ")"
_encode = msgspec.json.Encoder().encode

Columns = list[object]


class SQLiteProducing(Producing, BlockingProducing, Transactional):
    """The operations of `Producing` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def enqueue(
        self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()
    ) -> list[Enqueued]:
        # The whole call is atomic.
        if flows:
            return await self._file.write(partial(enqueue_flows, jobs=jobs, flows=flows))
        if not jobs:
            return []
        return await self._file.write(partial(enqueue_jobs, jobs=jobs))

    def enqueue_blocking(self, jobs: Sequence[NewJob], timeout: float) -> list[Enqueued]:
        if not jobs:
            return []
        return self._file.get_writer().run(partial(enqueue_jobs, jobs=jobs), timeout)

    async def cancel(self, job_id: str) -> Cancellation:
        return await self._file.write(partial(cancel, job_id=job_id))

    async def send_signals(self, signals: Sequence[NewSignal]) -> list[SignalOutcome]:
        from nimburion.backends.sqlite.runs import send_signals  # most processes send none

        if not signals:
            return []
        return await self._file.write(partial(send_signals, signals=signals))

    async def enqueue_in(
        self,
        connection: CallerConnection,
        jobs: Sequence[NewJob],
        flows: Sequence[NewFlow] = (),
    ) -> list[Enqueued]:
        transactions = self._file.get_caller_transactions()
        if not jobs and not flows:
            await transactions.check_connection(find_adapter(connection))
            return []
        refuse_growth(flows)

        def enqueue(db: Database) -> list[Enqueued]:
            transactions.check_space(db, jobs)
            results = enqueue_flows(db, jobs, flows) if flows else enqueue_jobs(db, jobs)
            count_enqueued(db, jobs, results)
            return results

        results, queues = await transactions.run(find_adapter(connection), enqueue)
        created = next((result.id for result in results if result.outcome == "created"), None)
        if created is not None:
            transactions.commit_poller.add(created, queues)
        return results

    async def take_enqueue_counts(self, min_age: float) -> list[EnqueueCount]:
        def take(db: Database) -> list[EnqueueCount]:
            latest = db.now / MICRO - min_age
            rows = db.run("take_enqueue_counts", latest, MAX_ENQUEUE_COUNTS).fetchall()
            return sum_enqueue_counts(rows)

        return await self._file.write(take, durable=False)

    def transaction(self, connection: CallerConnection | None) -> Transaction:
        # Without a caller's connection, the transaction provides a `sqlite3.Connection`.
        return make_transaction(self._file.get_caller_transactions(), connection, self._file.clock)

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


def enqueue_jobs(db: Database, jobs: Sequence[NewJob]) -> list[Enqueued]:
    """Store jobs atomically; see `Producing.enqueue`."""
    first = jobs[0]
    try:
        is_plain = len(jobs) == 1 and first.options is NO_JOB_OPTIONS
        if is_plain and Lane(first.queue, first.name) in db.known_lanes:
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


def insert_jobs(db: Database, jobs: Sequence[NewJob], *, may_suspend: bool = False) -> None:
    """Insert jobs, and add each to its lane or to the scheduled jobs.

    `may_suspend`: some may have conditions; these are suspended.

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
    if may_suspend:
        suspend_new_jobs(db, last_before)
    db.run("insert_other_new_ready" if may_suspend else "insert_new_ready", last_before, now)
    if latest > now:
        later = "insert_other_new_scheduled" if may_suspend else "insert_new_scheduled"
        db.run(later, last_before, now)
    for job in jobs:
        if not (may_suspend and job.options.conditions):
            db.names_to_notify[job.queue] += 1


def enqueue_flows(db: Database, jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> list[Enqueued]:
    """Store jobs with their flows: decide the outcome of each before any is stored."""
    members = read_stored_members(db, jobs)
    stored = read_flows(db, jobs, flows, {member.id for member in members})
    known = add_ended_flows(jobs, read_known_jobs(db, jobs), stored)
    plan = plan_enqueue(
        jobs, refuse_strangers(jobs, known, {member.id: member.flow for member in members})
    )
    if not is_stored(plan.results):
        return plan.results
    new_flows = [flow for flow in select_new_flows(flows) if flow.id not in stored]
    insert_flows(db, new_flows)
    count_stored_members(db, members, {flow.id for flow in new_flows})
    grow_flows(db, plan.new, flows)
    if plan.new:
        db.update_cache(again=True)
        insert_jobs(db, plan.new, may_suspend=True)
    for job in plan.new:
        take_key(db, job.name, job.id, job.options)
    for replaced_id, job in plan.replacing:
        replace_job(db, replaced_id, job)
    return plan.results


def make_columns(db: Database, jobs: Sequence[NewJob]) -> Columns:
    """Return the parameters of `insert_jobs` for these jobs, one job after the other."""
    now = db.now
    values: Columns = []
    queue = name = tenant = options = own = None
    lane, encoded = 0, NO_JOB_OPTIONS
    for job in jobs:
        if job.options is not encoded:  # the members of a group share theirs
            encoded, is_default = job.options, job.options is NO_JOB_OPTIONS
            options = None if is_default else _encode(job.options).decode()
            own = None if is_default else job.options.fair_tenant
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
            compute_digest(job.name, job.payload),
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
    db.run("put_replacement", job.id, replaced_id, compute_digest(job.name, job.payload), until)


def count_enqueued(db: Database, jobs: Sequence[NewJob], results: Sequence[Enqueued]) -> None:
    """Store how many jobs the caller's transaction created; see `take_enqueue_counts`."""
    created = Counter(
        (job.queue, job.name)
        for job, result in zip(jobs, results, strict=True)
        if result.outcome == "created"
    )
    for (queue, name), count in created.items():
        db.run("put_enqueue_count", db.now // MICRO, queue, name, count)


def cancel(db: Database, job_id: str) -> Cancellation:
    """Cancel a waiting job; request that of a job that runs."""
    row = db.fetch_one("find_job_to_cancel", job_id)
    if row is None:
        raise JobNotFound(job_id)
    seq, state, lane, needs_cleanup = row
    if state != 0:
        return Cancellation.FINISHED
    sessions = db.run("request_cancel", seq).fetchall()
    if sessions:
        db.notify(make_session_name(session_id) for (session_id,) in sessions)
        return Cancellation.REQUESTED
    if needs_cleanup:
        ask_to_end(db, seq)
        return Cancellation.REQUESTED
    cancel_waiting(db, seq, lane)
    return Cancellation.CANCELLED
