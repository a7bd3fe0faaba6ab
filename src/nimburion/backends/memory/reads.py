"""`MemoryReading`: read jobs, queues, sessions, limits and statistics."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.flows import ConditionEntry
from nimburion.backends.memory.limits import list_limits, make_key_use
from nimburion.backends.memory.records import get_record
from nimburion.backends.memory.state import JobEntry, MemoryState
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.core.backend import MAX_HOLDERS, Reading
from nimburion.core.diagnosis import failure_groups
from nimburion.core.diagnosis.explanations import MAX_UNMET, Facts, Unmet
from nimburion.core.diagnosis.failure_groups import FailedJob, FailureGroups
from nimburion.core.errors import JobNotFound
from nimburion.core.fairness import (
    MAX_WAITING_COUNTED,
    WEIGHT_UNITS,
    TenantTurn,
    TenantUse,
    TenantUses,
)
from nimburion.core.flows import FlowInfo, FlowPage, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import FAILED_ONLY, PROCESSING_ONLY, JobRecord, State
from nimburion.core.limits import LimitInfo, closes_lane, concerns_lane
from nimburion.core.metrics.statistics import Statistics, add_statistics, check_interval
from nimburion.core.queries import (
    COUNT_BUDGET,
    EVERY_JOB,
    SCAN_BUDGET,
    WHOLE_PAYLOAD,
    JobCounts,
    JobFilter,
    Page,
    Pause,
    QueueInfo,
    parse_cursor,
)
from nimburion.core.records import Record, RecordKind, RecordPage
from nimburion.core.runs import RunPage
from nimburion.core.session import SessionInfo
from nimburion.core.timing.clock import MICRO


class MemoryReading(Reading):
    """The operations of `Reading` for the memory backend."""

    def __init__(self, data: MemoryData) -> None:
        self._data = data

    async def get_job(self, job_id: str) -> JobRecord:
        with AtomicStep(self._data) as step:
            return find_job(step, job_id).make_record(step.now, payload_bytes=WHOLE_PAYLOAD)

    async def list_jobs(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        after: str | None = None,
        payloads: bool = False,
        payload_bytes: int = WHOLE_PAYLOAD,
        budget: int = SCAN_BUDGET,
    ) -> Page:
        last = parse_cursor(after)
        payload_bytes = payload_bytes if payloads else 0
        page: list[JobRecord] = []
        examined = 0
        seq_examined: int | None = None
        with AtomicStep(self._data) as step:
            for seq, entry in iter_candidates(step.state, which.ids):
                if (last is not None and seq >= last) or not may_match(entry, which.states):
                    continue
                is_match = matches(entry, which, step.now)
                if examined == budget or (is_match and len(page) == limit):
                    return Page(page, None if seq_examined is None else str(seq_examined), examined)
                examined += 1
                seq_examined = seq
                if is_match:
                    page.append(entry.make_record(step.now, payload_bytes=payload_bytes))
        return Page(page, None, examined)

    async def group_failures(
        self,
        which: JobFilter = EVERY_JOB,
        *,
        limit: int = 100,
        budget: int = SCAN_BUDGET,
        since: Sequence[float] = (),
    ) -> FailureGroups:
        with AtomicStep(self._data) as step:
            dead = [
                entry
                for entry in reversed(step.state.jobs_by_seq.values())
                if entry.final_state is State.FAILED
            ]
            examined = dead[:budget]
            records = [
                entry.make_record(step.now) for entry in examined if matches(entry, which, step.now)
            ]
        errors = {record.id: record.error for record in records}
        failed = (
            FailedJob(record.fingerprint or "", record.finished_at or 0.0, record.id, record.name)
            for record in records
        )
        groups = failure_groups.group_failures(failed, limit, since)
        return FailureGroups(
            groups=[failure_groups.add_error(group, errors[group.job_id]) for group in groups],
            examined=len(examined),
            complete=len(examined) == len(dead),
        )

    async def explain_job(self, job_id: str) -> Facts:
        monotonic = self._data.clock.monotonic()
        with AtomicStep(self._data) as step:
            state, entry = step.state, find_job(step, job_id)
            key = entry.options.unique_key
            holder = None if key is None else step.find_key_holder(entry.name, key)
            return Facts(
                now=step.now / MICRO,
                job=entry.make_record(step.now),
                pause=state.find_pause(entry.queue, step.now),
                limits=[
                    limit
                    for name in state.limits.get(entry.name, {})
                    if concerns_lane(name, entry.queue)
                    for limit in list_limits(step, name, 1, MAX_HOLDERS)
                ],
                keys=[
                    use
                    for key, _, _ in state.list_limits(entry)
                    if not closes_lane(key[0])
                    and ((use := make_key_use(step, key)).in_use or use.parked)
                ],
                parked_for=None if entry.parked_for is None else entry.parked_for[0],
                turn=find_turn(state, entry),
                unmet=list_unmet(step, entry),
                unmet_count=len(find_unmet(state, entry)),
                key_holder=None if holder == job_id else holder,
                sessions=list_sessions(state, monotonic),
            )

    async def get_flow(self, flow_id: str) -> list[FlowInfo]:
        with AtomicStep(self._data) as step:
            return step.state.flow_tables.list_tree(flow_id)

    async def read_run(
        self, job_id: str, *, limit: int = 1_000, after: str | None = None
    ) -> RunPage:
        with AtomicStep(self._data) as step:
            find_job(step, job_id)
            return step.state.run_tables.read_page(job_id, limit, after)

    async def list_flows(
        self, *, running: bool = False, limit: int = 100, after: str | None = None
    ) -> FlowPage:
        # The cursor is the position of the last flow of the page.
        before = parse_cursor(after)
        with AtomicStep(self._data) as step:
            flows = list(enumerate(step.state.flow_tables.flows.values(), start=1))
        found = [
            (position, flow)
            for position, flow in reversed(flows)
            if flow.parent is None
            and (before is None or position < before)
            and not (running and not flow.unfinished)
        ]
        page = found[:limit]
        has_more = len(found) > limit and bool(page)
        return FlowPage([flow for _, flow in page], str(page[-1][0]) if has_more else None)

    async def count_jobs(
        self,
        queue: str | None = None,
        *,
        budget: int | None = COUNT_BUDGET,  # noqa: ARG002 (counts all jobs)
    ) -> JobCounts:
        with AtomicStep(self._data) as step:
            found = Counter(
                entry.get_state(step.now)
                for entry in step.state.jobs.values()
                if queue in (None, entry.queue)
            )
        return JobCounts({state: found[state] for state in State})

    async def list_queues(
        self,
        *,
        budget: int | None = COUNT_BUDGET,  # noqa: ARG002 (counts all jobs)
    ) -> list[QueueInfo]:
        with AtomicStep(self._data) as step:
            state, now = step.state, step.now
            unfinished: dict[str, list[JobEntry]] = {name: [] for name in state.list_paused(now)}
            for entry in state.jobs.values():
                if entry.final_state is None and not entry.is_suspended:
                    unfinished.setdefault(entry.queue, []).append(entry)
            return [
                make_queue_info(name, unfinished[name], now, state.find_pause(name, now))
                for name in sorted(unfinished)
            ]

    async def list_sessions(self) -> list[SessionInfo]:
        monotonic = self._data.clock.monotonic()
        with AtomicStep(self._data) as step:
            return list_sessions(step.state, monotonic)

    async def list_limits(
        self, *, name: str | None = None, fullest: int = 5, holders: int = MAX_HOLDERS
    ) -> list[LimitInfo]:
        with AtomicStep(self._data) as step:
            return list_limits(step, name, fullest, holders)

    async def list_tenants(self, limit: int = 100) -> TenantUses:
        with AtomicStep(self._data) as step:
            turns = step.state.turns
            waiting = Counter(
                (entry.queue, entry.priority, tenant) for tenant, entry in iter_turns(step.state)
            )
            uses = [
                (
                    (queue, -priority, share.virtual_time, tenant),
                    TenantUse(
                        tenant=tenant,
                        queue=queue,
                        priority=priority,
                        weight=turns.get_weight(tenant) / WEIGHT_UNITS,
                        waiting=min(waiting[queue, priority, tenant], MAX_WAITING_COUNTED),
                        running=peers.leases[tenant],
                        ahead=max(0, share.virtual_time - peers.min_virtual_time) / MICRO,
                    ),
                )
                for (queue, priority), peers in turns.classes.items()
                for tenant, share in peers.shares.items()
                if waiting[queue, priority, tenant] or peers.leases[tenant]
            ]
            weights = sorted(turns.weights.items())
        uses.sort(key=lambda ranked: ranked[0])
        return TenantUses(
            [use for _, use in uses[:limit]],
            {tenant: units / WEIGHT_UNITS for tenant, units in weights[:limit]},
        )

    async def list_statistics(
        self,
        since: float,
        until: float,
        step: int,
        *,
        queue: str | None = None,
        name: str | None = None,
    ) -> list[Statistics]:
        check_interval(since, until, step)
        with AtomicStep(self._data) as atomic:
            rows = [
                row
                for row in atomic.state.statistics.values()
                if row.step == step
                and since <= row.start < until
                and queue in (None, row.queue)
                and name in (None, row.name)
            ]
            return copy.deepcopy(add_statistics(rows))

    async def get_record(self, kind: RecordKind, record_id: str) -> Record | None:
        with AtomicStep(self._data) as step:
            return get_record(step, kind, record_id)

    async def list_records(
        self,
        kind: RecordKind,
        *,
        limit: int = 100,
        after: str | None = None,
        by_due: bool = False,
    ) -> RecordPage:
        # The cursor is the position of the last record of the page.
        before = parse_cursor(after)
        with AtomicStep(self._data) as step:
            records, now = list(step.state.records[kind].values()), step.now / MICRO
        if by_due:
            due = sorted(
                (record.due, position, record)
                for position, record in records
                if record.due is not None
            )
            return RecordPage([record for _, _, record in due[:limit]], now)
        found = [
            (position, record)
            for position, record in reversed(records)
            if before is None or position < before
        ]
        page = found[:limit]
        has_more = len(found) > limit and bool(page)
        next_cursor = str(page[-1][0]) if has_more else None
        return RecordPage([record for _, record in page], now, next_cursor)


def find_job(step: AtomicStep, job_id: str) -> JobEntry:
    """Return a job; raise `JobNotFound` if there is none with this id."""
    entry = step.state.jobs.get(job_id)
    if entry is None:
        raise JobNotFound(job_id)
    return entry


def find_unmet(state: MemoryState, entry: JobEntry) -> list[tuple[WaitSource, ConditionEntry]]:
    """Return the open conditions of a suspended job, or the impossible ones of a cancelled job."""
    is_cancelled = entry.final_state is State.CANCELLED
    conditions = state.flow_tables.list_conditions(entry.id)
    if is_cancelled:
        return [one for one in conditions if one[1].is_impossible]
    return [one for one in conditions if one[1].on is not None and not one[1].is_impossible]


def list_unmet(step: AtomicStep, entry: JobEntry) -> list[Unmet]:
    """Return the first of `find_unmet`, each with its source."""
    flows, jobs = step.state.flow_tables.flows, step.state.jobs
    unmet = []
    for source, condition in find_unmet(step.state, entry)[:MAX_UNMET]:
        job = jobs.get(source.id) if source.kind is SourceKind.JOB else None
        flow = flows.get(source.id) if source.kind is SourceKind.FLOW else None
        unmet.append(
            Unmet(
                condition=WaitCondition(source, condition.on or On.SUCCESS),
                job=None if job is None else job.make_record(step.now),
                flow=flow,
            )
        )
    return unmet


def list_sessions(state: MemoryState, monotonic: float) -> list[SessionInfo]:
    """Return the sessions that have not ended, at a time on the monotonic clock."""
    return [
        session.make_info(monotonic) for session in state.sessions.values() if not session.is_ended
    ]


def matches(entry: JobEntry, which: JobFilter, now: int) -> bool:
    """Return whether a job matches a filter."""
    return (
        (which.ids is None or entry.id in which.ids)
        and (which.states is None or entry.get_state(now) in which.states)
        and which.queue in (None, entry.queue)
        and which.name in (None, entry.name)
        and which.reason in (None, entry.reason)
        and (not which.needs_search or which.matches_search(entry.make_record(now)))
    )


def iter_candidates(
    state: MemoryState, ids: Collection[str] | None
) -> Iterator[tuple[int, JobEntry]]:
    """Return the jobs with these ids, or all for None: most recently enqueued first."""
    if ids is None:
        return reversed(state.jobs_by_seq.items())
    found = [state.jobs[job_id] for job_id in {*ids} if job_id in state.jobs]
    found.sort(key=lambda entry: entry.seq, reverse=True)
    return iter([(entry.seq, entry) for entry in found])


def may_match(entry: JobEntry, states: frozenset[State] | None) -> bool:
    """Return whether a search for these states examines a job."""
    if states == PROCESSING_ONLY:
        return entry.get_state(0) is State.PROCESSING
    return states != FAILED_ONLY or entry.final_state is State.FAILED


def iter_turns(state: MemoryState) -> Iterator[tuple[str, JobEntry]]:
    """Yield the jobs that wait for the turn of their tenant, with it."""
    for group, heap in state.turns.groups.items():
        for _, _, place, entry in heap:
            if entry.position is place:
                yield group[3], entry


def find_turn(state: MemoryState, entry: JobEntry) -> TenantTurn | None:
    """Return where a job stands in the turns of its queue; None: it does not wait for a turn."""
    tenant = entry.options.fair_tenant
    waiting = list(iter_turns(state))
    if tenant is None or not any(other is entry for _, other in waiting):
        return None
    peers = state.turns.classes[entry.queue, entry.priority]
    used = peers.shares[tenant].virtual_time
    class_ = (entry.queue, entry.priority)
    before = {
        other
        for other, job in waiting
        if (job.queue, job.priority) == class_ and peers.shares[other].virtual_time < used
    }
    own = [
        job
        for other, job in waiting
        if (other, job.queue, job.priority, job.name) == (tenant, *class_, entry.name)
        and (job.due, job.seq) < (entry.due, entry.seq)
    ]
    return TenantTurn(
        tenant=tenant,
        ahead=max(0, used - peers.min_virtual_time) / MICRO,
        tenants_before=len(before),
        jobs_before=min(len(own), MAX_WAITING_COUNTED),
    )


def make_queue_info(name: str, entries: list[JobEntry], now: int, pause: Pause | None) -> QueueInfo:
    """Return the state of a queue with these unfinished jobs."""
    waiting = [entry for entry in entries if entry.leased is None]
    due = [entry.due for entry in waiting if entry.due <= now]
    return QueueInfo(
        name=name,
        size=len(due),
        scheduled=len(waiting) - len(due),
        processing=len(entries) - len(waiting),
        oldest_age=(now - min(due)) / MICRO if due else 0.0,
        paused=pause is not None,
        pause=pause,
        names=dict(sorted(Counter(entry.name for entry in waiting).items())),
    )
