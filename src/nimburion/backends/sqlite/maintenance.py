"""`SQLiteMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import msgspec

from nimburion.backends.sqlite.connection.database import TENANT_UNIT, Database
from nimburion.backends.sqlite.file import SQLiteFile
from nimburion.backends.sqlite.flows import close_late_flows, get_flow_changes, make_member
from nimburion.backends.sqlite.limits import apply_change, decode_change, read_key_changes
from nimburion.backends.sqlite.producing import cancel
from nimburion.backends.sqlite.records import has_version, put_record, write_change
from nimburion.backends.sqlite.statistics import prune_statistics
from nimburion.backends.sqlite.tenants import forget_tenants, set_tenant_weight
from nimburion.backends.sqlite.unique_keys import retake_key
from nimburion.backends.sqlite.waiting import CANCELLED, COMPLETED, FAILED, put_in_lane
from nimburion.backends.waiters import ALL_WORKERS, make_session_name
from nimburion.core.backend import Maintaining
from nimburion.core.bulk_operations import BulkAction, check_job_ids
from nimburion.core.errors import JobNotFound
from nimburion.core.job import JobOptions, State
from nimburion.core.limits import LimitChange
from nimburion.core.maintenance import Cancellation, JobChanges, Retention
from nimburion.core.records import NewRecord, RecordChange, RecordKind, RecordPut
from nimburion.core.session import WorkerCommand, is_stored
from nimburion.core.timing.clock import MICRO, to_micros

ENDED_SESSION_RETENTION = 86_400 * MICRO
"""Microseconds for which the id of an ended session is kept."""
MAX_CHECKED = 10_000
"""The most lanes, and the most tenants, that one prune checks."""
MAX_RUN_ROWS = 20_000
"""The most steps and signals that one transaction deletes, unless one job has more."""
MAX_LATER_JOBS = 100_000
"""With more scheduled or parked jobs, no number is freed: all of these jobs must be read."""

_encode = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_decode_seqs = msgspec.json.Decoder(list[int]).decode


class SQLiteMaintaining(Maintaining):
    """The operations of `Maintaining` for the SQLite backend."""

    def __init__(self, file: SQLiteFile) -> None:
        self._file = file

    async def change_jobs(
        self,
        action: BulkAction,
        job_ids: Sequence[str],
        record: RecordChange | None = None,
        *,
        states: Collection[State] | None = None,
    ) -> JobChanges:
        check_job_ids(job_ids)
        allowed = action.narrow_states(states)

        def change(
            db: Database, done: list[str], left: Sequence[str]
        ) -> tuple[JobChanges, Sequence[str]]:
            """Also returns the jobs that another transaction deletes."""
            if record is not None and not has_version(db, record):
                return JobChanges(done), ()
            ids = left if allowed == action.states else _list_in_states(db, left, allowed)
            later: Sequence[str] = ()
            if action is BulkAction.DELETE:
                ids, later = split_deletion(db, ids)
            changed, held = _CHANGES[action](db, ids) if ids else ([], [])
            done = [*done, *changed]
            written = None
            if record is not None and not later:
                written = write_change(db, record, len(done), len(held))
            return JobChanges(done, held, written), later

        changes, later = await self._file.write(partial(change, done=[], left=job_ids))
        while later:
            changes, later = await self._file.write(partial(change, done=changes.ids, left=later))
        return changes

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:

        def pause(db: Database) -> None:
            end = None if until is None else to_micros(until)
            db.run("pause_queue", queue, by, reason, db.now, end)

        def resume(db: Database) -> None:
            db.run("resume_queue", queue)
            db.names_to_notify[queue] += ALL_WORKERS

        await self._file.write(pause if paused else resume)

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        text = None if command is None else command.value

        def send(db: Database) -> bool:
            db.notify([make_session_name(session_id)])
            return db.run("send_command", session_id, is_stored(command), text).rowcount > 0

        return await self._file.write(send)

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        await self._file.write(lambda db: set_tenant_weight(db, tenant, weight))

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        place = (change.name, int(change.key is not None), change.key or "")

        def merge(db: Database) -> None:
            row = db.fetch_one("get_limit_change", *place)
            merged = msgspec.structs.replace(change, at=db.now / MICRO)
            if row is not None:
                merged = decode_change(row[0]).merge(merged)
            before = read_key_changes(db)
            db.run("put_limit_change", *place, _encode(merged).decode())
            apply_change(db, change.name, change.key, before)

        await self._file.write(merge)

    async def reset_limit(self, name: str, key: str | None = None) -> bool:

        def reset(db: Database) -> bool:
            before = read_key_changes(db)
            deleted = db.run("delete_limit_change", name, int(key is not None), key or "").rowcount
            apply_change(db, name, key, before)
            return deleted > 0

        return await self._file.write(reset)

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        return await self._file.write(lambda db: put_record(db, record, version, keep))

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        return await self._file.write(
            lambda db: db.run("delete_record", kind, record_id).rowcount > 0
        )

    async def prune(self, keep: Retention, limit: int) -> int:

        def prune(db: Database, left: int) -> tuple[int, bool]:
            db.run("delete_ended_sessions", db.now - ENDED_SESSION_RETENTION)
            db.run("delete_expired_keys", db.now)
            db.run("delete_expired_replacements", db.now)
            prune_statistics(db)
            db.run("prune_limit_uses", db.now)
            if keep.open_flows is not None:
                close_late_flows(db, db.now - to_micros(keep.open_flows))
            if keep.flows is not None:
                db.run("delete_old_flows", db.now - to_micros(keep.flows))
            forget_tenants(db)
            deleted = prune_jobs(db, keep, left)
            free_numbers(db)
            return deleted

        deleted, has_more = 0, True
        while has_more:  # each part ends its transaction, so that other calls come between
            part, has_more = await self._file.write(
                partial(prune, left=limit - deleted), durable=False
            )
            deleted += part
        return deleted


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
        if options is not None and _decode_options(options).flow is not None:
            get_flow_changes(db).note_replay(make_member(job_id, options))
        db.run("reset_dead_letter", seq, db.now, lane)
        db.run("count_finished", lane, FAILED, -1)
        put_in_lane(db, lane, priority, db.now, seq, retry=False)
        replayed.append(job_id)
    return replayed, held


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


def split_deletion(db: Database, job_ids: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Return the jobs that one transaction deletes, and those for the next ones: durable runs may
    have many steps.
    """
    if not db.fetch_value("has_runs"):
        return job_ids, ()
    seqs = {job_id: seq for seq, job_id in db.run("list_finished_jobs", _encode(job_ids).decode())}
    listed = _encode([seqs[job_id] for job_id in job_ids if job_id in seqs]).decode()
    first = _decode_seqs(db.fetch_value("select_first_jobs", listed, MAX_RUN_ROWS))
    if len(first) == len(seqs):
        return job_ids, ()
    now = {*first}
    later = [job_id for job_id in job_ids if job_id in seqs and seqs[job_id] not in now]
    return [job_id for job_id in job_ids if seqs.get(job_id) in now], later


def delete_jobs(db: Database, listed: str) -> None:
    """Delete finished jobs with all that is stored about them. `listed` is a JSON array of seqs."""
    if db.fetch_value("has_runs"):
        db.run("delete_steps", listed)
        db.run("delete_signals", listed)
    db.run("delete_attempt_errors", listed)
    db.run("delete_progress", listed)
    db.run("delete_conditions_of_jobs", listed)
    db.run("uncount_jobs", listed)
    db.run("delete_jobs", listed)


def prune_jobs(db: Database, keep: Retention, limit: int) -> tuple[int, bool]:
    """Delete up to `limit` jobs and results that are kept long enough. Return their number, and
    whether it is less than asked for because these jobs had many steps and signals.
    """
    left = limit
    for state, seconds, can_be_reopened in (
        (COMPLETED, keep.completed, False),
        (CANCELLED, keep.completed, False),
        (CANCELLED, keep.failed, True),
        (FAILED, keep.failed, False),
    ):
        if seconds is not None and left > 0:
            before = db.now - to_micros(seconds)
            listed = db.fetch_value("list_older", state, before, left, can_be_reopened)
            deleted, has_more = delete_listed(db, listed)
            left -= deleted
            if has_more:
                return limit - left, True
    if keep.completed_max is not None and left > 0:
        listed = db.fetch_value("list_excess", keep.completed_max, left)
        deleted, has_more = delete_listed(db, listed)
        left -= deleted
        if has_more:
            return limit - left, True
    if keep.results is not None and left > 0:
        left -= db.run("delete_old_results", db.now - to_micros(keep.results), left).rowcount
    return limit - left, False


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


def delete_listed(db: Database, listed: str) -> tuple[int, bool]:
    """Delete the jobs of a JSON array of seqs. Only the first are deleted if they have many steps
    and signals. Return how many were deleted, and whether others are left.
    """
    count = len(_decode_seqs(listed))
    if not count:
        return 0, False
    if db.fetch_value("has_runs"):
        listed = db.fetch_value("select_first_jobs", listed, MAX_RUN_ROWS)
    delete_jobs(db, listed)
    deleted = len(_decode_seqs(listed))
    return deleted, deleted < count
