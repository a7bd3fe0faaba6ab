"""The flows of the SQLite backend, and the conditions for which its jobs wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nimburion.backends.planning.flows import (
    REOPENED_REASONS,
    FlowData,
    FlowMember,
    FlowResolver,
    SourceChange,
    Transition,
    Waiter,
    check_graph,
    check_growth,
    check_same_flow,
    check_same_groups,
    choose_reason,
    count_growth,
    list_members,
    list_unended,
    make_flow,
    select_new_flows,
)
from nimburion.backends.sqlite.connection.database import (
    ROWS_PER_STATEMENT,
    Database,
    Row,
    repeat_row,
)
from nimburion.backends.sqlite.unique_keys import retake_key
from nimburion.backends.sqlite.waiting import (
    CANCELLED,
    end_waiting,
    remove_waiting,
)
from nimburion.core.flows import (
    MAX_CLOSED,
    FlowInfo,
    FlowPage,
    Growth,
    NewFlow,
    On,
    SourceKind,
    WaitSource,
)
from nimburion.core.job import JobOptions, NewJob, State
from nimburion.core.timing.clock import MICRO, to_micros

_encode = msgspec.json.Encoder().encode
_decode_options = msgspec.json.Decoder(JobOptions).decode
_STATES = (State.PENDING, State.COMPLETED, State.FAILED, State.CANCELLED)
"""By number, the states as `job` has them. Unfinished jobs are in several states."""
_ON: dict[str, On | None] = {"": None} | {on.value: on for on in On}
_decode_ids = msgspec.json.Decoder(list[str]).decode
_REASONS = _encode(sorted(REOPENED_REASONS)).decode()


class SQLiteFlowData(FlowData):
    """The flows and conditions in one call."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def read_flows(self, ids: Collection[str]) -> list[FlowInfo]:
        listed = _encode(list(ids)).decode()
        return [make_flow_info(row) for row in self._db.run("list_flows_by_id", listed)]

    def save_flows(self, flows: Sequence[FlowInfo]) -> None:
        for start in range(0, len(flows), ROWS_PER_STATEMENT):
            part = flows[start : start + ROWS_PER_STATEMENT]
            values: list[object] = []
            for flow in part:
                grown_at = None if flow.grown_at is None else to_micros(flow.grown_at)
                values += (flow.id, flow.unfinished, flow.completed, flow.failed, flow.cancelled)
                values += (flow.added, grown_at)
            row = "(?, ?, ?, ?, ?, ?, ?)"
            text = repeat_row(self._db.statements["save_flows"], row, len(part))
            self._db.connection.execute(text, (*values, self._db.now))

    def select_awaited(self, changes: Sequence[SourceChange]) -> list[SourceChange]:
        if not changes:
            return []
        listed = _encode([(source.kind, source.id) for source, _ in changes]).decode()
        return [changes[place] for (place,) in self._db.run("select_awaited", listed)]

    def list_waiters(self, changes: Sequence[SourceChange], limit: int) -> list[Waiter]:
        rows = self._list_few_conditions(changes, limit) if len(changes) > 1 else None
        if rows is None:
            rows = self._list_conditions_by_source(changes, limit)
        found = [
            Waiter(changes[place].source, job_id, _ON[awaited], seq)
            for seq, place, job_id, awaited in rows
        ]
        found.sort(key=lambda one: (one.seq, one.source))
        return found[:limit]

    def _list_few_conditions(self, changes: Sequence[SourceChange], limit: int) -> list[Row] | None:
        """Read the conditions in one statement, if there are less than `limit`, else None."""
        listed = [
            (source.kind, source.id, change is Transition.REOPENED, change is Transition.FAILING)
            for source, change in changes
        ]
        rows = self._db.run("list_few_waiters", _encode(listed).decode(), limit).fetchall()
        return None if len(rows) == limit else rows

    def _list_conditions_by_source(self, changes: Sequence[SourceChange], limit: int) -> list[Row]:
        rows: list[Row] = []
        for place, (source, change) in enumerate(changes):
            is_reopened, is_failing = change is Transition.REOPENED, change is Transition.FAILING
            values = (source.kind, source.id, is_reopened, is_failing, limit)
            for seq, job_id, awaited in self._db.run("list_waiters", *values):
                rows.append((seq, place, job_id, awaited))
        return rows

    def list_due(self, limit: int) -> list[Waiter]:
        return [
            Waiter(WaitSource(SourceKind.TIME, source_id), job_id, On.ANY, seq)
            for source_id, seq, job_id in self._db.run("list_due_conditions", self._db.now, limit)
        ]

    def has_signal(self, source: WaitSource) -> bool:
        from nimburion.core.runs import split_signal_source  # most jobs are never suspended

        found = self._db.fetch_value("has_signal", *split_signal_source(source.id))
        return bool(found)

    def meet(self, waiters: Sequence[Waiter]) -> None:
        self._db.run("delete_conditions", _list_conditions(waiters))
        runs = {waiter.seq for waiter in waiters if waiter.on is On.ANY}
        if runs:
            self._db.run("delete_alternatives", _encode(sorted(runs)).decode())
        resume_jobs(self._db, sorted({waiter.seq for waiter in waiters}))

    def cancel(self, waiters: Sequence[Waiter]) -> list[FlowMember]:
        self._db.run("mark_conditions", _list_conditions(waiters), 1)
        cancelled = []
        for waiter in waiters:
            suspended = self._db.fetch_one("find_suspended", waiter.job_id)
            row = suspended
            if row is None and waiter.on is None:
                row = self._db.fetch_one("find_waiting", waiter.job_id)
            if row is None:
                continue
            seq, lane, options, needs_cleanup = row
            if needs_cleanup:
                ask_to_end(self._db, seq)
                continue
            if suspended is None:
                remove_waiting(self._db, seq, lane)
            else:
                self._db.run("delete_suspended", seq)
            reason = choose_reason(waiter.on)
            end_waiting(self._db, seq, lane, reason, keeps_payload=True)
            cancelled.append(make_member(waiter.job_id, options))
        return cancelled

    def reopen(self, waiters: Sequence[Waiter]) -> list[FlowMember]:
        self._db.run("mark_conditions", _list_conditions(waiters), 0)
        reopened, resumed = [], []
        for waiter in waiters:
            row = self._db.fetch_one("find_reopened", waiter.job_id, _REASONS)
            if row is None:
                continue
            seq, old_lane, options = row
            retake_key(self._db, waiter.job_id, old_lane, options)
            names, tenant = self._db.get_lane(old_lane), _decode_options(options).fair_tenant
            lane = self._db.find_or_add_tenant_lane(names.queue, names.name, tenant)
            self._db.run("reopen_job", seq, lane)
            self._db.run("insert_suspended", seq, lane)
            self._db.run("count_finished", lane, CANCELLED, -1)
            reopened.append(make_member(waiter.job_id, options))
            resumed.append(seq)
        if any(waiter.on is None for waiter in waiters):
            resume_jobs(self._db, resumed)
        return reopened

    def take_changes(self) -> list[SourceChange]:
        rows = sorted(self._db.run("take_flow_changes").fetchall())
        return [
            SourceChange(WaitSource(SourceKind(kind), source_id), Transition(change))
            for _, kind, source_id, change in rows
        ]

    def put_changes(self, changes: Sequence[SourceChange]) -> None:
        for source, change in changes:
            self._db.run("put_flow_change", source.kind, source.id, change)


def resume_jobs(db: Database, seqs: Sequence[int]) -> None:
    """Let those of these suspended jobs wait for a worker that wait for no condition."""
    resumed = [seq for (seq,) in db.run("resume_jobs", _encode(seqs).decode()).fetchall()]
    if not resumed:
        return
    listed = _encode(resumed).decode()
    lanes = Counter(db.run("set_resumed_due", listed, db.now).fetchall())
    db.run("insert_resumed_ready", listed, db.now)
    if any(is_later for _, is_later in lanes):
        db.run("insert_resumed_scheduled", listed, db.now)
    for (lane, _), count in lanes.items():
        db.names_to_notify[db.get_lane(lane).queue] += count


def get_flow_changes(db: Database) -> FlowResolver:
    """Return where this call notes changes of members of flows. They are applied at its end."""
    if db.flow_changes is None:
        db.flow_changes = FlowResolver(SQLiteFlowData(db))
        db.flow_changes.continue_changes()
    return db.flow_changes


def continue_flows(db: Database) -> bool:
    """Apply what follows from the changes of members of flows, also from those that earlier calls
    have left, and resume durable runs whose time has come. Return whether nothing is left.
    """
    if db.flow_changes is None and not db.fetch_value("has_flow_changes", db.now):
        return True
    get_flow_changes(db)
    db.resolve_flows()
    return not db.fetch_value("has_flow_changes", db.now)


def note_ended_jobs(db: Database, seqs: Collection[int], state: State) -> None:
    """Note which of these jobs, which have ended in one state, are members of flows."""
    counts: dict[str, int] = {}
    awaited: list[str] = []
    rows = db.run("count_members", _encode(sorted(seqs)).decode()).fetchall()
    for flow, count, sources in rows:
        if flow is not None:
            counts[flow] = count
        if sources != "[]":
            awaited += _decode_ids(sources)
    if rows:
        get_flow_changes(db).note_ends(counts, awaited, state)


def read_flows(
    db: Database, jobs: Sequence[NewJob], flows: Sequence[NewFlow], stored_jobs: Collection[str]
) -> dict[str, FlowInfo]:
    """Return the stored flows that a call names, after a check of its flows and conditions.

    `stored_jobs`: the ids of those jobs of the call that are stored.
    """
    named = {flow.id for flow in flows}
    named |= {job.options.flow for job in jobs if job.options.flow is not None}
    named |= {flow.parent for flow in flows if flow.parent is not None}
    sources = [condition.source for job in jobs for condition in job.options.conditions]
    named |= {source.id for source in sources if source.kind is SourceKind.FLOW}
    named |= {counted for job in jobs if (counted := job.options.counted_flow) is not None}
    found = (find_flow(db, flow_id) for flow_id in named)
    stored = {flow.id: flow for flow in found if flow is not None}
    for new in select_new_flows(flows):
        if new.id in stored:
            check_same_flow(new, stored[new.id])
    check_same_groups(flows, stored)
    check_growth(jobs, flows, stored, stored_jobs)
    known_jobs = list_members(jobs, flows)
    others = {source.id for source in sources if source.kind is SourceKind.JOB} - known_jobs
    flow_ids = {flow.id for flow in flows}
    listed = (_encode(sorted(others)).decode(), _encode(sorted(flow_ids)).decode())
    known_jobs |= {row[0] for row in db.run("find_sources", *listed)}
    check_graph(list_unended(jobs, stored), flows, stored.keys() | flow_ids, known_jobs)
    return stored


class StoredMember(NamedTuple):
    """A stored job that has the id of a job of a call."""

    id: str
    flow: str | None
    counted_flow: str | None
    state: int


def read_stored_members(db: Database, jobs: Sequence[NewJob]) -> list[StoredMember]:
    """Return the stored jobs that have an id of a call."""
    listed = _encode([job.id for job in jobs]).decode()
    return [StoredMember(*row) for row in db.run("list_stored_members", listed)]


def count_stored_members(
    db: Database, members: Sequence[StoredMember], new_flows: Collection[str]
) -> None:
    """Count the members of new flows that have ended: they outlived the flow of this id."""
    for member in members:
        if member.state and member.counted_flow in new_flows:
            ended = FlowMember(member.id, member.counted_flow)
            get_flow_changes(db).note_end(ended, _STATES[member.state])


def insert_flows(db: Database, flows: Sequence[NewFlow]) -> None:
    """Store flows."""
    for flow in flows:
        values = (flow.id, flow.name, flow.parent, flow.members, flow.max_failed)
        db.run("insert_flow", *values, flow.fail_fast, flow.growth is Growth.OPEN, db.now)
        stored = make_flow(flow, db.now / MICRO)
        if not stored.unfinished:
            get_flow_changes(db).note_new_flow(stored)


def grow_flows(db: Database, new_jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> None:
    """Count the new members of stored flows, and close flows."""
    for flow_id, count in count_growth(new_jobs, flows).items():
        get_flow_changes(db).note_growth(flow_id, count, db.now / MICRO)
    for flow in flows:
        if flow.growth is Growth.CLOSE:
            get_flow_changes(db).note_closed(flow.id)


def close_late_flows(db: Database, grown_before: int) -> None:
    """Close up to `MAX_CLOSED` open flows that got no members since this time."""
    for (flow_id,) in db.run("list_late_flows", grown_before, MAX_CLOSED).fetchall():
        get_flow_changes(db).note_closed(flow_id, is_late=True)


def suspend_new_jobs(db: Database, last_before: int) -> None:
    """Suspend the jobs after this seq that have conditions, before they are added to lanes."""
    db.run("suspend_new", last_before)
    db.run("insert_conditions", last_before)
    db.run("insert_fail_fast", last_before)
    for kind, source_id, state in db.run("list_ended_sources", last_before).fetchall():
        ended = find_flow(db, source_id) if state is None else _STATES[state]
        if ended is not None:
            get_flow_changes(db).note_condition(WaitSource(SourceKind(kind), source_id), ended)


def add_run_conditions(db: Database, awaited: Mapping[int, Collection[WaitSource]]) -> None:
    """Let durable runs, which were added to `suspended`, wait each for the first of its sources.

    `awaited`: the sources by the seq of the run.
    """
    rows = [(one.kind, one.id, seq) for seq, sources in awaited.items() for one in sources]
    if rows:
        db.run("insert_run_conditions", _encode(rows).decode())
    db.used = db.used._replace(flows=True)
    changes = get_flow_changes(db)
    for sources in awaited.values():
        changes.note_suspended(sources)


def add_cancel_signal(db: Database, seq: int) -> None:
    """Ask a run to end as cancelled, unless it was asked before."""
    db.run("insert_cancel_signal", seq, db.now)


def ask_to_end(db: Database, seq: int) -> None:
    """Ask a run without a lease to end as cancelled, and resume it if it is suspended."""
    add_cancel_signal(db, seq)
    db.run("delete_alternatives", f"[{seq}]")
    resume_jobs(db, [seq])


def _list_conditions(waiters: Sequence[Waiter]) -> str:
    """Return conditions as a JSON array of [kind, id of the source, seq of the job]."""
    return _encode([(one.source.kind, one.source.id, one.seq) for one in waiters]).decode()


def make_member(job_id: str, options: str) -> FlowMember:
    """Return a job with the flow that counts it."""
    return FlowMember(job_id, _decode_options(options).counted_flow)


def find_flow(db: Database, flow_id: str) -> FlowInfo | None:
    """Return a flow or a group; None: it is not kept."""
    row = db.fetch_one("find_flow", flow_id)
    return None if row is None else make_flow_info(row)


def make_flow_info(row: Row) -> FlowInfo:
    """Convert a row of `find_flow`."""
    (
        flow_id, name, parent, declared, unfinished, completed, failed, cancelled, max_failed,
        fail_fast, added, created_at, grown_at, finished_at,
    ) = row  # fmt: skip
    return FlowInfo(
        id=flow_id,
        name=name,
        parent=parent,
        members=declared + added,
        unfinished=unfinished,
        completed=completed,
        failed=failed,
        cancelled=cancelled,
        max_failed=max_failed,
        fail_fast=bool(fail_fast),
        added=added,
        created_at=created_at / MICRO,
        grown_at=None if grown_at is None else grown_at / MICRO,
        finished_at=None if finished_at is None else finished_at / MICRO,
    )


def list_flows(db: Database, before: int, limit: int, *, running: bool) -> FlowPage:
    """Return a page of flows that are no groups, the newest first."""
    rows = db.run("list_flows", before, running, limit + 1).fetchall()
    flows = [make_flow_info(row[1:]) for row in rows[:limit]]
    return FlowPage(flows, str(rows[limit - 1][0]) if len(rows) > limit > 0 else None)
