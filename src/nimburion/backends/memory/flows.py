"""The flows of the memory backend, and the conditions for which its jobs wait."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from heapq import heapify, heappop, heappush
from itertools import groupby, islice, takewhile
from typing import TYPE_CHECKING

import msgspec

from nimburion.backends.memory.heaps import iter_heap
from nimburion.backends.planning.flows import (
    REOPENED_REASONS,
    FlowData,
    FlowMember,
    SourceChange,
    Transition,
    Waiter,
    choose_reason,
)
from nimburion.backends.planning.settle import Effect
from nimburion.core.flows import FlowInfo, On, SourceKind, WaitSource
from nimburion.core.job import WAITING, State
from nimburion.core.runs import make_time_source, split_signal_source
from nimburion.core.timing.clock import MICRO

if TYPE_CHECKING:
    from nimburion.backends.memory.state import JobEntry
    from nimburion.backends.memory.transitions import AtomicStep


MIN_TIMES = 1_000
"""Up to this many times, those for which no job waits any more are kept until they come."""


class FlowTables:
    """All flows and conditions of a memory backend."""

    def __init__(self) -> None:
        self.flows: dict[str, FlowInfo] = {}
        """By id, in the order in which they were stored."""
        self.groups: defaultdict[str, set[str]] = defaultdict(set)
        """The ids of the groups of each flow."""
        self.waiters: defaultdict[WaitSource, dict[str, ConditionEntry]] = defaultdict(dict)
        """The conditions on each source, by the id of the job that waits."""
        self.sources: defaultdict[str, set[WaitSource]] = defaultdict(set)
        """The sources of the conditions of each job."""
        self.times: list[WaitSource] = []
        """A heap of the times for which jobs wait, or waited."""
        self._most_times: int = MIN_TIMES
        """The length of the heap at which the times are removed for which no job waits."""
        self.changes: list[SourceChange] = []
        """What earlier steps have left."""

    def add_flow(self, flow: FlowInfo) -> None:
        self.flows[flow.id] = flow
        if flow.parent is not None:
            self.groups[flow.parent].add(flow.id)

    def add_condition(self, source: WaitSource, job_id: str, on: On | None) -> None:
        self.waiters[source][job_id] = ConditionEntry(on)
        self.sources[job_id].add(source)
        if source.kind is SourceKind.TIME:
            heappush(self.times, source)
            if len(self.times) > self._most_times:
                self.times = [time for time in {*self.times} if time in self.waiters]
                heapify(self.times)
                self._most_times = max(MIN_TIMES, 2 * len(self.times))

    def iter_times(self, last: WaitSource) -> Iterator[WaitSource]:
        """Yield the times up to `last`, each once, earliest first."""
        times = takewhile(lambda time: time <= last, iter_heap(self.times))
        return (time for time, _ in groupby(times))

    def find_next_time(self) -> int | None:
        """Return the earliest time for which a job waits, in microseconds; None: there is none."""
        while self.times and self.times[0] not in self.waiters:
            heappop(self.times)
        return int(self.times[0].id) if self.times else None

    def remove_condition(self, source: WaitSource, job_id: str) -> None:
        self.waiters[source].pop(job_id, None)
        if not self.waiters[source]:
            del self.waiters[source]
        self.sources[job_id].discard(source)
        if not self.sources[job_id]:
            del self.sources[job_id]

    def remove_alternatives(self, job_id: str) -> None:
        """Remove those conditions of a job of which one is enough."""
        for source, entry in self.list_conditions(job_id):
            if entry.on is On.ANY:
                self.remove_condition(source, job_id)

    def remove_conditions(self, job_id: str) -> None:
        """Remove all conditions of a job."""
        for source in list(self.sources.get(job_id, ())):
            self.remove_condition(source, job_id)

    def must_wait(self, job_id: str) -> bool:
        """Return whether a job has a condition with an end that is not met."""
        return any(entry.on is not None for _, entry in self.list_conditions(job_id))

    def list_conditions(self, job_id: str) -> list[tuple[WaitSource, ConditionEntry]]:
        """Return the conditions of a job that are not met, in the order of their sources."""
        sources = sorted(self.sources.get(job_id, ()))
        return [(source, self.waiters[source][job_id]) for source in sources]

    def list_tree(self, flow_id: str) -> list[FlowInfo]:
        """Return a flow and the groups inside it; empty if it is not kept."""
        flow = self.flows.get(flow_id)
        if flow is None:
            return []
        inside = [one for child in self.groups.get(flow_id, ()) for one in self.list_tree(child)]
        return [flow, *sorted(inside, key=lambda one: one.id)]

    def is_running(self, flow_id: str | None) -> bool:
        """Return whether a flow is kept and has not ended."""
        flow = None if flow_id is None else self.flows.get(flow_id)
        return flow is not None and flow.unfinished > 0

    def list_late(self, grown_before: float, limit: int) -> list[str]:
        """Return the ids of up to `limit` open flows that got no members since this time."""
        late = (
            one.id
            for one in self.flows.values()
            if one.grown_at is not None and one.grown_at < grown_before
        )
        return list(islice(late, limit))

    def prune(self, ended_before: float) -> None:
        """Remove the flows that ended before this time, with their groups."""
        for flow in list(self.flows.values()):
            ended = flow.finished_at
            if flow.parent is None and ended is not None and ended < ended_before:
                for one in self.list_tree(flow.id):
                    del self.flows[one.id]
                    self.groups.pop(one.id, None)


class ConditionEntry(msgspec.Struct, eq=False):
    """A condition that is not met."""

    on: On | None
    """None: the job is cancelled if the flow fails."""
    is_impossible: bool = False
    """Whether its job was cancelled for it."""


class MemoryFlowData(FlowData):
    """The flows and conditions in one atomic step."""

    def __init__(self, step: AtomicStep) -> None:
        self._step = step
        self._data: FlowTables = step.state.flow_tables

    def read_flows(self, ids: Collection[str]) -> list[FlowInfo]:
        return [self._data.flows[flow_id] for flow_id in ids if flow_id in self._data.flows]

    def save_flows(self, flows: Sequence[FlowInfo]) -> None:
        for flow in flows:
            finished_at = None if flow.unfinished else self._step.now / MICRO
            self._data.flows[flow.id] = msgspec.structs.replace(flow, finished_at=finished_at)

    def select_awaited(self, changes: Sequence[SourceChange]) -> list[SourceChange]:
        return [change for change in changes if change.source in self._data.waiters]

    def list_waiters(self, changes: Sequence[SourceChange], limit: int) -> list[Waiter]:
        jobs = self._step.state.jobs
        found = [
            Waiter(source, job_id, entry.on, jobs[job_id].seq)
            for source, change in changes
            for job_id, entry in self._data.waiters.get(source, {}).items()
            if entry.is_impossible is (change is Transition.REOPENED)
            and not (change is Transition.FAILING and entry.on in {On.FINISHED, On.ANY})
        ]
        found.sort(key=lambda one: (one.seq, one.source))
        return found[:limit]

    def list_due(self, limit: int) -> list[Waiter]:
        due: list[Waiter] = []
        last = make_time_source(self._step.now)
        for source in self._data.iter_times(last):
            due += [
                Waiter(source, job_id, On.ANY, self._step.state.jobs[job_id].seq)
                for job_id in self._data.waiters.get(source, ())
            ]
            if len(due) >= limit:
                break
        return due[:limit]

    def has_signal(self, source: WaitSource) -> bool:
        return self._step.state.run_tables.has_unread(*split_signal_source(source.id))

    def meet(self, waiters: Sequence[Waiter]) -> None:
        for waiter in waiters:
            self._data.remove_condition(waiter.source, waiter.job_id)
            if waiter.on is On.ANY:
                self._data.remove_alternatives(waiter.job_id)
            entry = self._step.state.jobs[waiter.job_id]
            if entry.is_suspended and not self._data.must_wait(waiter.job_id):
                self._step.resume(entry)

    def cancel(self, waiters: Sequence[Waiter]) -> list[FlowMember]:
        cancelled = []
        for waiter in waiters:
            self._data.waiters[waiter.source][waiter.job_id].is_impossible = True
            entry = self._step.state.jobs[waiter.job_id]
            may_wait = waiter.on is None and entry.get_state(self._step.now) in WAITING
            if not (entry.is_suspended or may_wait):
                continue
            if self._step.state.run_tables.needs_cleanup(entry.id):
                self._step.send_cancel(entry)
            else:
                reason = choose_reason(waiter.on)
                self._step.apply_effect(entry, Effect(State.CANCELLED, reason=reason))
                cancelled.append(describe_member(entry))
        return cancelled

    def reopen(self, waiters: Sequence[Waiter]) -> list[FlowMember]:
        reopened = []
        for waiter in waiters:
            self._data.waiters[waiter.source][waiter.job_id].is_impossible = False
            entry = self._step.state.jobs[waiter.job_id]
            conditions = self._data.list_conditions(waiter.job_id)
            was_cancelled = entry.final_state is State.CANCELLED
            if (
                was_cancelled
                and entry.reason in REOPENED_REASONS
                and not any(condition.is_impossible for _, condition in conditions)
            ):
                self._step.suspend_again(entry)
                if not self._data.must_wait(waiter.job_id):
                    self._step.resume(entry)
                reopened.append(describe_member(entry))
        return reopened

    def take_changes(self) -> list[SourceChange]:
        taken, self._data.changes = self._data.changes, []
        return taken

    def put_changes(self, changes: Sequence[SourceChange]) -> None:
        self._data.changes += changes


def describe_member(entry: JobEntry) -> FlowMember:
    """Return a job with the flow that counts it."""
    return FlowMember(entry.id, entry.options.counted_flow)
