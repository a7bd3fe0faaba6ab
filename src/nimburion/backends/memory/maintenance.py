"""`MemoryMaintaining`: what operators change, and what is pruned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType

import msgspec

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.flows import FlowTables, describe_member
from nimburion.backends.memory.limits import apply_changed_limit, change_key
from nimburion.backends.memory.records import find_version, put_record, write_change
from nimburion.backends.memory.state import JobEntry, MemoryState
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.planning.flows import REOPENED_REASONS
from nimburion.backends.waiters import ALL_WORKERS, make_session_name
from nimburion.core.backend import Maintaining
from nimburion.core.bulk_operations import BulkAction, check_job_ids
from nimburion.core.fairness import WEIGHT_UNITS, to_weight_units
from nimburion.core.flows import MAX_CLOSED
from nimburion.core.job import State
from nimburion.core.limits import LimitChange
from nimburion.core.maintenance import JobChanges, Retention
from nimburion.core.metrics.statistics import MERGE_AFTER, MERGED_SOURCE, STEPS, add_statistics
from nimburion.core.queries import Pause
from nimburion.core.records import NewRecord, RecordChange, RecordKind, RecordPut
from nimburion.core.session import WorkerCommand, is_stored
from nimburion.core.timing.clock import MICRO, to_micros

ENDED_SESSION_RETENTION = to_micros(86_400)
"""Microseconds for which the id of an ended session is kept."""


class MemoryMaintaining(Maintaining):
    """The operations of `Maintaining` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

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
        with AtomicStep(self._data) as step:
            kept = None if record is None else find_version(step, record)
            if record is not None and kept is None:
                return JobChanges([])
            jobs = step.state.jobs
            known = (entry for job_id in job_ids if (entry := jobs.get(job_id)) is not None)
            matching = [entry for entry in known if _can_change(step, action, entry, allowed)]
            changed = [entry.id for entry in matching if _CHANGES[action](step, entry)]
            held = [entry.id for entry in matching if entry.id not in set(changed)]
            written = None
            if record is not None and kept is not None:
                written = write_change(step, kept, record, len(changed), len(held))
            return JobChanges(changed, held, written)

    async def pause_queue(
        self,
        queue: str,
        *,
        paused: bool,
        by: str = "",
        reason: str = "",
        until: float | None = None,
    ) -> None:
        with AtomicStep(self._data) as step:
            state = step.state
            if not paused:
                state.pauses.pop(queue, None)
                step.names_to_notify[queue] += ALL_WORKERS
                return
            old = state.find_pause(queue, step.now)
            since = step.now / MICRO if old is None else old.since
            state.pauses[queue] = Pause(by=by, reason=reason, since=since, until=until)

    async def send_command(self, session_id: str, command: WorkerCommand | None) -> bool:
        with AtomicStep(self._data) as step:
            session = step.state.sessions.get(session_id)
            if session is None or session.is_ended:
                return False
            if is_stored(command):
                session.command = command
            step.names_to_notify[make_session_name(session_id)] += 1
            return True

    async def set_tenant_weight(self, tenant: str, weight: float | None) -> None:
        units = WEIGHT_UNITS if weight is None else to_weight_units(weight)
        with AtomicStep(self._data) as step:
            step.state.turns.set_weight(tenant, units)

    async def change_limit(self, change: LimitChange) -> None:
        change.check()
        with AtomicStep(self._data) as step:
            state = step.state
            change = msgspec.structs.replace(change, at=step.now / MICRO)
            if change.key is None:
                old = state.limit_changes.get(change.name)
                state.limit_changes[change.name] = change if old is None else old.merge(change)
                apply_changed_limit(step, change.name)
            else:
                key = (change.name, change.key)
                old = state.key_changes.get(key)
                change_key(step, key, change if old is None else old.merge(change))

    async def reset_limit(self, name: str, key: str | None = None) -> bool:
        with AtomicStep(self._data) as step:
            if key is not None:
                existed = (name, key) in step.state.key_changes
                change_key(step, (name, key), None)
            else:
                existed = step.state.limit_changes.pop(name, None) is not None
                apply_changed_limit(step, name)
            return existed

    async def put_record(
        self, record: NewRecord, *, version: int | None = None, keep: int | None = None
    ) -> RecordPut:
        with AtomicStep(self._data) as step:
            return put_record(step, record, version, keep)

    async def delete_record(self, kind: RecordKind, record_id: str) -> bool:
        with AtomicStep(self._data) as step:
            return step.state.records[kind].pop(record_id, None) is not None

    async def prune(self, keep: Retention, limit: int) -> int:
        left = limit
        with AtomicStep(self._data) as step:
            state, now = step.state, step.now
            prune_sessions_and_keys(state, now)
            prune_statistics(state, now)
            if keep.open_flows is not None:
                grown_before = now / MICRO - keep.open_flows
                for flow_id in state.flow_tables.list_late(grown_before, MAX_CLOSED):
                    step.get_flow_changes().note_closed(flow_id, is_late=True)
            if keep.flows is not None:
                state.flow_tables.prune(now / MICRO - keep.flows)
            ended = [e for e in state.jobs_by_seq.values() if _may_prune(e, state.flow_tables)]
            old = [e for e in ended if _is_past_retention(e, keep, now)]
            for entry in old[:left]:
                state.remove_job(entry)
                left -= 1
            if keep.completed_max is not None:
                existing = [
                    e
                    for e in ended
                    if e.final_state in {State.COMPLETED, State.CANCELLED}
                    and not _can_be_reopened(e)
                    and e.id in state.jobs
                ]
                existing.sort(key=lambda e: (e.finished_at or 0, e.seq))
                for entry in existing[: min(left, max(0, len(existing) - keep.completed_max))]:
                    state.remove_job(entry)
                    left -= 1
            for entry in ended:
                is_kept = entry.id in state.jobs
                if (
                    left
                    and is_kept
                    and entry.result is not None
                    and _is_older(entry, keep.results, now)
                ):
                    entry.result = None
                    left -= 1
        return limit - left


def _can_change(
    step: AtomicStep, action: BulkAction, entry: JobEntry, allowed: frozenset[State]
) -> bool:
    """Return whether the action changes the job in its state. A job that is due stays in place."""
    if action is BulkAction.RUN_NOW and entry.due <= step.now:
        return False
    if action is BulkAction.DELETE and not _may_prune(entry, step.state.flow_tables):
        return False
    return entry.get_state(step.now) in allowed


def _replay(step: AtomicStep, entry: JobEntry) -> bool:
    """Make a dead letter due now. Reset its failure and loss counts; keep its history.

    Return False if another job holds its unique key.
    """
    key = entry.options.unique_key
    holder = None if key is None else step.find_key_holder(entry.name, key)
    if holder not in (None, entry.id):
        return False
    if holder is None:
        step.take_key(entry)
    if entry.options.flow is not None:
        step.get_flow_changes().note_replay(describe_member(entry))
    entry.final_state, entry.finished_at, entry.reason = None, None, None
    entry.ended_by = None
    entry.failures = entry.lost = 0
    return _make_due(step, entry)


def _make_due(step: AtomicStep, entry: JobEntry) -> bool:
    entry.due = step.now
    step.state.add_waiting(entry, step.now)
    step.names_to_notify[entry.queue] += 1
    return True


def _cancel(step: AtomicStep, entry: JobEntry) -> bool:
    step.cancel(entry.id)
    return True


def _delete(step: AtomicStep, entry: JobEntry) -> bool:
    step.state.remove_job(entry)
    return True


_CHANGES: Mapping[BulkAction, Callable[[AtomicStep, JobEntry], bool]] = MappingProxyType(
    {
        BulkAction.REPLAY: _replay,
        BulkAction.RUN_NOW: _make_due,
        BulkAction.CANCEL: _cancel,
        BulkAction.DELETE: _delete,
    }
)


def prune_sessions_and_keys(state: MemoryState, now: int) -> None:
    """Remove sessions that ended more than a day ago, unique keys and replacements that have
    expired, and tenants that have no jobs.
    """
    state.turns.forget()
    for session_id, session in list(state.sessions.items()):
        if (
            session.ended_at is not None
            and not session.leased_jobs
            and session.ended_at < now - ENDED_SESSION_RETENTION
        ):
            del state.sessions[session_id]
    for key, use in list(state.limit_uses.items()):
        if not (use.in_use or use.opens_at or use.has_parked()) and use.spent_until < now:
            del state.limit_uses[key]
    for key, lease in list(state.unique_keys.items()):
        if lease.valid_until is not None and lease.valid_until <= now:
            del state.unique_keys[key]
    for job_id, replacement in list(state.replacements.items()):
        if replacement.valid_until <= now:
            del state.replacements[job_id]


def prune_statistics(state: MemoryState, now: int) -> None:
    """Remove statistics that are older than `STEPS` allows, and merge the sources of others."""
    for key in [
        key
        for key, row in state.statistics.items()
        if row.start * MICRO < now - to_micros(STEPS[row.step])
    ]:
        del state.statistics[key]
    old = {
        key: row
        for key, row in state.statistics.items()
        if (row.start + row.step + MERGE_AFTER) * MICRO < now
    }
    for key in old:
        del state.statistics[key]
    for row in add_statistics(old.values()):
        state.statistics[row.step, row.start, row.queue, row.name, MERGED_SOURCE] = row


def _may_prune(entry: JobEntry, flows: FlowTables) -> bool:
    """Return whether a job has ended, and its flow too."""
    return entry.final_state is not None and not flows.is_running(entry.options.flow)


def _is_past_retention(entry: JobEntry, keep: Retention, now: int) -> bool:
    if entry.final_state is None:
        return False
    is_like_failed = entry.final_state is State.FAILED or _can_be_reopened(entry)
    return _is_older(entry, keep.failed if is_like_failed else keep.completed, now)


def _can_be_reopened(entry: JobEntry) -> bool:
    """Return whether the replay of another job suspends this one again."""
    return entry.final_state is State.CANCELLED and entry.reason in REOPENED_REASONS


def _is_older(entry: JobEntry, seconds: float | None, now: int) -> bool:
    if seconds is None or entry.finished_at is None:
        return False
    return entry.finished_at < now - to_micros(seconds)
