"""State transitions of a single job.

Each also updates lanes, limits, unique keys and notifications.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Self

from nimburion.backends.memory.data import MemoryData
from nimburion.backends.memory.flows import MemoryFlowData, describe_member
from nimburion.backends.memory.state import (
    JobEntry,
    KeyEntry,
    LeaseEntry,
    MemoryState,
    ReplacementEntry,
    SessionEntry,
    UniqueKeyEntry,
)
from nimburion.backends.planning.enqueue import (
    KeyHolder,
    KnownJobs,
    Replacement,
    compute_due,
    compute_key_end,
    compute_replaced_due,
    holds_key,
    is_stored,
    plan_enqueue,
)
from nimburion.backends.planning.flows import (
    REOPENED_REASONS,
    FlowResolver,
    add_ended_flows,
    check_graph,
    check_growth,
    check_same_flow,
    check_same_groups,
    count_growth,
    list_members,
    list_unended,
    make_flow,
    refuse_strangers,
    select_new_flows,
)
from nimburion.backends.planning.settle import (
    CANCELLED,
    Effect,
    decide_effect,
    decide_release,
    decide_unmatched,
)
from nimburion.backends.waiters import JobCounts, make_session_name
from nimburion.core.errors import JobNotFound
from nimburion.core.flows import Growth, NewFlow, On, SourceKind, WaitSource
from nimburion.core.ids import compute_digest
from nimburion.core.job import REPEAT_WINDOW, WAITING, Enqueued, NewJob, Progress
from nimburion.core.limits import LimitKey, get_limited_job
from nimburion.core.maintenance import Cancellation
from nimburion.core.runs import CLEANUP_STEP, NewSignal, SignalOutcome, make_signal_source
from nimburion.core.settlement import (
    Completed,
    Progressed,
    RateLimited,
    Recorded,
    Released,
    Retried,
    Settled,
    Settlement,
    Spent,
    Suspended,
)
from nimburion.core.timing.clock import MICRO, to_micros

_DELAYED = (Retried, Released, Suspended)
_WITHOUT_DELAY = (Completed, Recorded)
"""Nearly all settlements. A look at their type is faster than several `isinstance`."""


class AtomicStep:
    """One atomic read or change of the data, at one time.

    As a context manager, it holds the lock. At its end it notifies the queues and sessions that it
    collected.
    """

    __slots__ = ("_data", "_freed_places", "flow_changes", "names_to_notify", "now", "state")

    def __init__(self, data: MemoryData) -> None:
        self._data = data
        self.state: MemoryState = data.shared.state
        self.now: int = 0
        """Microseconds since 1970, read under the lock."""
        self.names_to_notify: JobCounts = JobCounts(int)
        self._freed_places: defaultdict[LimitKey, int] = defaultdict(int)
        """By key of a limit, how many of its jobs have ended."""
        self.flow_changes: FlowResolver | None = None
        """The changes of members of flows; None: there were none since `resolve_flows`."""

    def __enter__(self) -> Self:
        """Wait for the lock, and read the clock."""
        self._data.shared.lock.acquire()
        try:
            self.now = to_micros(self._data.clock.now())
        except BaseException:
            self._data.shared.lock.release()
            raise
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        """Release the lock, then notify. After a failure, notify nothing."""
        try:
            if failure is None and self.flow_changes is not None:
                self.resolve_flows()
            if failure is None and self._freed_places:
                self._notify_freed()
        finally:
            self._data.shared.lock.release()
        if failure is None and self.names_to_notify:
            self._data.shared.notify(self.names_to_notify)

    def _notify_freed(self) -> None:
        """Collect the queues in which jobs wait for the places that are free now."""
        lanes = {*self.state.lanes, *self.state.turns.list_lanes()}
        queues: defaultdict[str, set[LimitKey]] = defaultdict(set)
        for lane in lanes:
            limits = self.state.list_lane_limits(*lane)
            keys = self._freed_places.keys() & {limit.key for limit, _ in limits}
            is_open = all(limit.count_room(self.now, 1) for limit in limits)
            if keys and is_open and self.state.has_waiting(lane):
                queues[lane[0]] |= keys
        for queue, keys in queues.items():
            self.names_to_notify[queue] += sum(self._freed_places[key] for key in keys)

    # Enqueue

    def enqueue(self, jobs: Sequence[NewJob], flows: Sequence[NewFlow] = ()) -> list[Enqueued]:
        """Store jobs and flows: decide the outcome of each before any is stored."""
        check_job_times(jobs)
        if flows:
            self._check_graph(jobs, flows)
        new_ids = {job.id for job in jobs if job.options.unique_key is None}
        if not flows and len(new_ids) == len(jobs) and self.state.jobs.keys().isdisjoint(new_ids):
            for job in jobs:
                self._insert(job)
            return [Enqueued(job.id, "created") for job in jobs]
        known = self._read_known_jobs(jobs)
        if flows:
            known = add_ended_flows(jobs, known, self.state.flow_tables.flows)
            kept = {job.id: self.state.jobs.get(job.id) for job in jobs}
            stored_flows = {entry.id: entry.options.flow for entry in kept.values() if entry}
            known = refuse_strangers(jobs, known, stored_flows)
        plan = plan_enqueue(jobs, known)
        if is_stored(plan.results):
            new_flows = self._add_flows(select_new_flows(flows))
            self._count_stored_members(jobs, new_flows)
            self._grow_flows(plan.new, flows)
        for job in plan.new:
            self._insert(job)
        for replaced_id, job in plan.replacing:
            self._replace(self.state.jobs[replaced_id], job)
        return plan.results

    def _read_known_jobs(self, jobs: Sequence[NewJob]) -> KnownJobs:
        """Return what is known about the ids and the unique keys of these jobs."""
        stored = self.state.jobs
        digests, holders, replacements = {}, {}, {}
        for job in jobs:
            if job.id in stored:
                digests[job.id] = stored[job.id].get_body_digest()
            key, replacement = job.options.unique_key, self.state.replacements.get(job.id)
            if key is not None and (holder := self.find_key_holder(job.name, key)) is not None:
                entry = stored.get(holder)
                is_waiting = entry is not None and entry.get_state(self.now) in WAITING
                holders[job.name, key] = KeyHolder(holder, is_waiting)
            if replacement is not None and replacement.valid_until > self.now:
                replacements[job.id] = Replacement(replacement.job_id, replacement.digest)
        return KnownJobs(digests, holders, replacements)

    def _insert(self, job: NewJob) -> None:
        state = self.state
        state.seq += 1
        entry = JobEntry(
            job.id,
            job.name,
            job.queue,
            job.payload,
            job.priority,
            job.options,
            state.seq,
            due=compute_due(job, self.now),
            created_at=self.now,
        )
        state.jobs[job.id] = state.jobs_by_seq[entry.seq] = entry
        if job.options.unique_key is not None:
            self.take_key(entry)
        if job.options.flow is not None:
            self._guard(entry)
        if job.options.conditions:
            self._suspend(entry)
            return
        state.add_waiting(entry, self.now)
        self.names_to_notify[job.queue] += 1

    def _replace(self, entry: JobEntry, job: NewJob) -> None:
        """Give a waiting job the payload, options, queue, priority and due time of a new one."""
        self.pass_turns(entry)
        entry.digest = entry.get_body_digest()
        entry.due = compute_replaced_due(
            job,
            self.now,
            created_at=entry.created_at,
            old_due=entry.due,
            failures=entry.failures,
        )
        entry.payload, entry.options = job.payload, job.options
        entry.queue, entry.priority = job.queue, job.priority
        self.take_key(entry)
        self.state.add_waiting(entry, self.now)
        self.state.replacements[job.id] = ReplacementEntry(
            entry.id, compute_digest(job.name, job.payload), self.now + to_micros(REPEAT_WINDOW)
        )
        self.names_to_notify[job.queue] += 1

    # Flows

    def get_flow_changes(self) -> FlowResolver:
        """Return where changes of members of flows are noted, until `resolve_flows`."""
        if self.flow_changes is None:
            self.flow_changes = FlowResolver(MemoryFlowData(self))
            self.flow_changes.continue_changes()
        return self.flow_changes

    def resolve_flows(self) -> bool:
        """Apply what follows from the changes of members of flows, also from those that earlier
        steps have left, and resume durable runs. Return whether no change is left.
        """
        tables = self.state.flow_tables
        time = tables.find_next_time() if tables.times else None
        is_due = time is not None and time <= self.now
        if self.flow_changes is not None or tables.changes or is_due:
            self.get_flow_changes().resolve()
            self.flow_changes = None
        return not tables.changes

    def _check_graph(self, jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> None:
        """Raise `InvalidJob` if a flow is another one, or something that is named is unknown."""
        stored = self.state.flow_tables.flows
        for flow in select_new_flows(flows):
            if flow.id in stored:
                check_same_flow(flow, stored[flow.id])
        check_same_groups(flows, stored)
        check_growth(jobs, flows, stored, self.state.jobs)
        flow_ids = {flow.id for flow in flows}
        sources = {condition.source.id for job in jobs for condition in job.options.conditions}
        known_jobs = list_members(jobs, flows)
        for job_id in self.state.jobs.keys() & sources:
            if self.state.jobs[job_id].options.flow in flow_ids:
                known_jobs.add(job_id)
        check_graph(list_unended(jobs, stored), flows, stored.keys() | flow_ids, known_jobs)

    def _add_flows(self, flows: Sequence[NewFlow]) -> set[str]:
        """Store the flows that are new, and return their ids."""
        added = set()
        for new in flows:
            if new.id not in self.state.flow_tables.flows:
                flow = make_flow(new, self.now / MICRO)
                self.state.flow_tables.add_flow(flow)
                self.get_flow_changes().note_new_flow(flow)
                added.add(new.id)
        return added

    def _grow_flows(self, new_jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> None:
        """Count the new members of stored flows, and close flows."""
        for flow_id, count in count_growth(new_jobs, flows).items():
            self.get_flow_changes().note_growth(flow_id, count, self.now / MICRO)
        for flow in flows:
            if flow.growth is Growth.CLOSE:
                self.get_flow_changes().note_closed(flow.id)

    def _count_stored_members(self, jobs: Sequence[NewJob], new_flows: Collection[str]) -> None:
        """Count the members of new flows that have ended: they outlived the flow of this id."""
        for job in jobs if new_flows else ():
            entry = self.state.jobs.get(job.id)
            if entry is not None and entry.final_state and entry.options.counted_flow in new_flows:
                self.get_flow_changes().note_end(describe_member(entry), entry.final_state)

    def _suspend(self, entry: JobEntry) -> None:
        """Let a new job wait for its conditions."""
        entry.is_suspended = True
        for condition in entry.options.conditions:
            source = condition.source
            self.state.flow_tables.add_condition(source, entry.id, entry.seq, condition.on)
            if source.kind is SourceKind.FLOW:
                self.get_flow_changes().note_condition(
                    source, self.state.flow_tables.flows[source.id]
                )
            elif source.id in self.state.jobs:
                ended = self.state.jobs[source.id].get_state(self.now)
                self.get_flow_changes().note_condition(source, ended)

    def _guard(self, entry: JobEntry) -> None:
        """Let a new job be cancelled if its flow fails, if the flow says so."""
        flow_id, options = entry.options.flow, entry.options
        flow = None if flow_id is None else self.state.flow_tables.flows.get(flow_id)
        if flow is not None and flow.fail_fast and options.counted_flow is not None:
            source = WaitSource(SourceKind.FLOW, flow.id)
            self.state.flow_tables.add_condition(source, entry.id, entry.seq, None)
            self.get_flow_changes().note_condition(source, flow)

    def resume(self, entry: JobEntry) -> None:
        """Let a job wait for a worker whose conditions are met. It is due now, if it was before."""
        entry.is_suspended = False
        self._requeue(entry, max(entry.due, self.now))

    def _suspend_run(self, entry: JobEntry, sources: Collection[WaitSource]) -> None:
        """Let a durable run wait for the first of these sources."""
        entry.is_suspended = True
        for source in sources:
            self.state.flow_tables.add_condition(source, entry.id, entry.seq, On.ANY)
        self.get_flow_changes().note_suspended(sources)

    def send_signal(self, signal: NewSignal) -> SignalOutcome:
        """Store a signal, and resume its job if that waits for it."""
        entry = self.state.jobs.get(signal.job_id)
        state = None if entry is None else entry.get_state(self.now)
        outcome = self.state.run_tables.add_signal(signal, state, self.now)
        if outcome is SignalOutcome.STORED:
            source = make_signal_source(signal.job_id, signal.name)
            self.get_flow_changes().note_signal(source)
        return outcome

    def send_cancel(self, entry: JobEntry) -> None:
        """Ask a durable run to end as cancelled, and resume it if it is suspended."""
        self.state.run_tables.add_cancel_signal(entry.id, self.now)
        if entry.is_suspended:
            self.state.flow_tables.remove_alternatives(entry.id)
            self.resume(entry)

    def suspend_again(self, entry: JobEntry) -> None:
        """Let a job wait for its conditions that was cancelled because of one."""
        entry.final_state, entry.finished_at, entry.reason = None, None, None
        entry.is_suspended = True
        key = entry.options.unique_key
        if key is not None and self.find_key_holder(entry.name, key) is None:
            self.take_key(entry)

    # Unique keys

    def find_key_holder(self, name: str, key: str) -> str | None:
        """Return the id of the job that holds a unique key now, or None."""
        lease = self.state.unique_keys.get((name, key))
        if lease is None:
            return None
        entry = self.state.jobs.get(lease.job_id)
        state = None if entry is None else entry.get_state(self.now)
        holds = holds_key(self.now, lease.valid_until, lease.states, state)
        return lease.job_id if holds else None

    def take_key(self, entry: JobEntry) -> None:
        """Assign its unique key to a job; do nothing for a job without a key."""
        options = entry.options
        if options.unique_key is not None:
            self.state.unique_keys[entry.name, options.unique_key] = UniqueKeyEntry(
                entry.id, compute_key_end(options, self.now), options.unique_while
            )

    def release_key(self, entry: JobEntry, key: str) -> None:
        """Release the unique key of a finished job, unless the key is held until a fixed time."""
        lease = self.state.unique_keys.get((entry.name, key))
        if lease is not None and lease.job_id == entry.id and lease.valid_until is None:
            del self.state.unique_keys[entry.name, key]
            self.names_to_notify[entry.queue] += 1

    # Cancel

    def cancel(self, job_id: str) -> Cancellation:
        """Cancel a waiting job; request that of a job that runs."""
        entry = self.state.jobs.get(job_id)
        if entry is None:
            raise JobNotFound(job_id)
        if entry.final_state is not None:
            return Cancellation.FINISHED
        if entry.leased is not None:
            entry.leased.cancel_requested = True
            self.names_to_notify[make_session_name(entry.leased.session.session.id)] += 1
            return Cancellation.REQUESTED
        if self.state.run_tables.needs_cleanup(job_id):
            self.send_cancel(entry)
            return Cancellation.REQUESTED
        self.apply_effect(entry, CANCELLED)
        return Cancellation.CANCELLED

    # Settle

    def settle(self, session: SessionEntry, settlement: Settlement) -> Settled:
        """Apply one settlement if its token matches the lease; else see `decide_unmatched`."""
        entry = self.state.jobs.get(settlement.lease.job_id)
        if entry is None:
            return Settled.STALE
        lease = entry.leased
        if lease is None or lease.session is not session or lease.token != settlement.lease.token:
            return decide_unmatched(settlement.lease.token, entry.last_settled_token)
        blocked = False
        if type(settlement) is not Completed:
            if isinstance(settlement, Recorded):
                self.record_step(entry, settlement)
                return Settled.DONE
            if isinstance(settlement, Progressed | Spent):
                self.note_report(entry, settlement)
                return Settled.DONE
            blocked = isinstance(settlement, RateLimited) and self.block_rates(
                entry, settlement.retry_after
            )
        effect = decide_effect(
            settlement,
            self.now,
            cancel_requested=lease.cancel_requested,
            needs_cleanup=lease.cancel_requested and self.state.run_tables.needs_cleanup(entry.id),
            is_rate_blocked=blocked,
        )
        self.apply_effect(entry, effect)
        return Settled.DONE

    def record_step(self, entry: JobEntry, step: Recorded) -> None:
        """Store a step of a durable run."""
        if self.state.run_tables.record(step, self.now) and step.number != CLEANUP_STEP:
            entry.failures = entry.lost = 0

    def note_report(self, entry: JobEntry, report: Progressed | Spent) -> None:
        """Store what an attempt that continues reports."""
        if isinstance(report, Progressed):
            entry.progress = Progress(report.fraction, report.message)
            return
        for key, _, rate in self.state.list_limits(entry):
            if rate is not None:
                use = self.state.limit_uses[key]
                use.spent_until = rate.spend(use.spent_until, self.now, report.units)

    def apply_effect(  # noqa: C901, PLR0912 - one call for each job
        self, entry: JobEntry, effect: Effect
    ) -> None:
        """End the lease of a job, or the wait of a job without one."""
        lease = entry.leased
        if lease is not None:
            if effect.refunds_units:
                self.give_units_back(entry, lease)
            entry.leased = None
            entry.started_at = lease.started_at
            if effect.settles:
                entry.last_settled_token = lease.token
            lease.session.leased_jobs.pop(entry.seq, None)
            if lease.charge is not None:
                run_time = self.now - lease.started_at if effect.has_run else None
                self.state.turns.settle(entry, lease.charge, run_time)
            for key in lease.counted_keys:
                use = self.state.limit_uses[key]
                use.in_use -= 1
                self._freed_places[key] += 1
                if use.parked:
                    self.unpark_next(key, use)
        if effect.error is not None:
            entry.history = (*entry.history, effect.error)
        entry.failures += effect.failures
        entry.lost += effect.lost
        if effect.sends_cancel:
            self.send_cancel(entry)
        if effect.sources is not None:
            self._suspend_run(entry, effect.sources)
            return
        if effect.state is None:
            self._requeue(entry, effect.due)
            return
        if entry.options.flow is not None or entry.is_suspended:
            self._end_member(entry, effect, lease)
        entry.final_state = effect.state
        entry.ended_by = None if lease is None else lease.session
        entry.finished_at = self.now
        entry.reason = effect.reason
        entry.result = effect.result
        entry.position = None
        if lease is None:
            self.pass_turns(entry)
        if not effect.keeps_payload:
            entry.digest = entry.get_body_digest()
            entry.payload = None
        if entry.options.unique_key is not None:
            self.release_key(entry, entry.options.unique_key)

    def _end_member(self, entry: JobEntry, effect: Effect, lease: LeaseEntry | None) -> None:
        """Note that a member of a flow or a suspended job ends."""
        was_suspended, entry.is_suspended = entry.is_suspended, False
        if lease is None and effect.reason in REOPENED_REASONS:
            return  # the resolver notes the jobs that it cancels
        if was_suspended:
            self.state.flow_tables.remove_conditions(entry.id)
        if effect.state is not None:
            self.get_flow_changes().note_end(describe_member(entry), effect.state)

    def _requeue(self, entry: JobEntry, due: int | None) -> None:
        """Make a job wait again: at a due time, or at its old place."""
        if due is not None:
            entry.due = due
        self.state.add_waiting(entry, self.now)
        self.names_to_notify[entry.queue] += 1

    def release(self, entry: JobEntry, *, settles: bool, unstarted: bool) -> None:
        """Let a leased job wait again, for a reason other than a settlement."""
        lease = entry.leased
        if lease is not None:
            effect = decide_release(
                cancel_requested=lease.cancel_requested,
                settles=settles,
                unstarted=unstarted,
                needs_cleanup=lease.cancel_requested
                and self.state.run_tables.needs_cleanup(entry.id),
            )
            self.apply_effect(entry, effect)

    def block_rates(self, entry: JobEntry, seconds: float) -> bool:
        """Let the rates of the keys of a job, or that of its name, allow no job for some seconds.

        Returns whether there is a rate.
        """
        limits = self.state.list_limits(entry, uses_own_cost=False)
        rates = [(key, rate) for key, _, rate in limits if rate is not None]
        carried = [(key, rate) for key, rate in rates if get_limited_job(key[0]) is None]
        for key, rate in carried or rates:
            use = self.state.limit_uses[key]
            use.spent_until = rate.block(use.spent_until, self.now, max(0, to_micros(seconds)))
        return bool(rates)

    def give_units_back(self, entry: JobEntry, lease: LeaseEntry) -> None:
        """Give back what a job that has not started took from the rates of its keys."""
        for key, _, rate in self.state.list_limits(entry):
            if rate is not None and key in lease.counted_keys:
                use = self.state.limit_uses[key]
                use.spent_until = rate.refund(use.spent_until, self.now, lease.started_at)

    def unpark_next(self, key: LimitKey, use: KeyEntry) -> None:
        """Let the next job of each lane that is parked for a key have its turn."""
        for lane in list(use.parked):
            if self.state.unpark(key, lane):
                self.names_to_notify[lane[0]] += 1

    def pass_turns(self, entry: JobEntry) -> None:
        """Let jobs that are parked for the keys of a cancelled or replaced job have its turn.

        It may have been the one that returned to its lane when its key had room.
        """
        lane = (entry.queue, entry.name)
        if entry.parked_for is None:
            for key, _, _ in self.state.list_limits(entry):
                if self.state.unpark(key, lane):
                    self.names_to_notify[entry.queue] += 1
        entry.parked_for = None


def check_job_times(jobs: Sequence[NewJob]) -> None:
    """Raise `Unstorable` if a job has an invalid time. Call it before any job is stored."""
    for job in jobs:
        to_micros(job.after if job.at is None else job.at)
        if job.options.unique_for is not None:
            to_micros(job.options.unique_for)
        if job.options.max_wait is not None:
            to_micros(job.options.max_wait)


def check_settlement_delays(settlements: Sequence[Settlement]) -> None:
    """Raise `Unstorable` if a delay is invalid. Call it before any settlement is applied."""
    for settlement in settlements:
        if type(settlement) in _WITHOUT_DELAY:
            continue
        if isinstance(settlement, _DELAYED) and settlement.delay is not None:
            to_micros(settlement.delay)
        elif isinstance(settlement, RateLimited):
            to_micros(settlement.retry_after)
