"""What follows from the end of members of flows: the counts, and the jobs that waited for them.

The same steps resume durable runs, when a flow, a signal or a time comes for which they wait.

A backend gives the jobs that end in one atomic step to a `FlowResolver`, which reads and changes
the data through a `FlowData`. PostgreSQL and Redis do the same in SQL and Lua.

A job or a flow that ends is a *source*: conditions of other jobs name it. Its end makes each of
these conditions met or impossible (`judge`). A job is resumed when its last condition is met, and
cancelled when one is impossible. A job that is cancelled so is itself a source. A replay turns this
back: the conditions that were impossible are open again, and their jobs suspended.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from nimburion.backends.planning.enqueue import KnownJobs
from nimburion.core.errors import FlowNotFound, InvalidJob
from nimburion.core.flows import (
    MAX_RESOLVED,
    FlowInfo,
    Growth,
    NewFlow,
    On,
    SourceKind,
    WaitSource,
)
from nimburion.core.ids import compute_digest
from nimburion.core.job import DEPENDENCY, NOT_NEEDED, NewJob, State

REOPENED_REASONS = frozenset({DEPENDENCY, NOT_NEEDED})
"""The reasons of cancelled jobs that the replay of another job suspends again."""


class Transition(enum.StrEnum):
    """What happened to a source."""

    SUCCEEDED = "succeeded"
    """It ended with success."""
    FAILING = "failing"
    """A flow is certain to fail; some of its members have not ended."""
    FAILED = "failed"
    """It ended without success: a job that failed or was cancelled, or a flow that failed."""
    REOPENED = "reopened"
    """It had ended or failed, and a replay made it run again."""


class SourceChange(NamedTuple):
    """A change of a source, which concerns the jobs that wait for it."""

    source: WaitSource
    change: Transition


class Waiter(NamedTuple):
    """A condition of a job, on a source that changed."""

    source: WaitSource
    job_id: str
    on: On | None
    """None: the job does not wait for the flow. It is cancelled if the flow fails (`fail_fast`)."""
    seq: int
    """The number of the job in the order of enqueueing."""


class FlowMember(NamedTuple):
    """A job whose state changed, with the flow or the group that counts it."""

    job_id: str
    flow: str | None


class FlowData(Protocol):
    """The flows and the conditions of a backend, in one atomic step.

    A condition is *open* while its job waits for it. It is removed when it is met. One that is
    impossible stays with the cancelled job, so that a replay can open it again.

    Each member of a flow with `fail_fast` has a condition without an end (`Waiter.on` is None) on
    the flow. No job is suspended for it. It stays when its job ends, and goes with the flow.
    """

    def read_flows(self, ids: Collection[str]) -> list[FlowInfo]:
        """Return those of these flows and groups that are kept."""
        ...

    def save_flows(self, flows: Sequence[FlowInfo]) -> None:
        """Store the counts of flows. One has ended if its `unfinished` is 0."""
        ...

    def select_awaited(self, changes: Sequence[SourceChange]) -> list[SourceChange]:
        """Return the changes of those sources that conditions name, in their order."""
        ...

    def list_waiters(self, changes: Sequence[SourceChange], limit: int) -> list[Waiter]:
        """Return up to `limit` conditions that these changes concern, in the order of their jobs.

        Those are the impossible ones of a source that is `REOPENED`, and the open ones of others.
        Of a flow that is `FAILING`, those on its end (`On.FINISHED`, `On.ANY`) are left out. No
        source is in `changes` twice.
        """
        ...

    def list_due(self, limit: int) -> list[Waiter]:
        """Return up to `limit` conditions on times that have come, earliest first."""
        ...

    def has_signal(self, source: WaitSource) -> bool:
        """Return whether a job has an unread signal for which this source stands."""
        ...

    def meet(self, waiters: Sequence[Waiter]) -> None:
        """Remove these conditions. Resume each suspended job that has no other one with an end.

        If one of them is enough (`On.ANY`), those of its job that would have been enough too are
        removed with it. Several of them may be given, also of one job.
        """
        ...

    def cancel(self, waiters: Sequence[Waiter]) -> list[FlowMember]:
        """Mark these conditions as impossible, and cancel those of their jobs that are suspended.
        A condition without an end also cancels a job that waits for a worker.

        The reason is `choose_reason(waiter.on)`, and the jobs keep their payload. A durable run
        with the step `CLEANUP_STEP` gets the signal `CANCEL_SIGNAL` instead. Returns the jobs that
        were cancelled.
        """
        ...

    def reopen(self, waiters: Sequence[Waiter]) -> list[FlowMember]:
        """Open these conditions again.

        Suspend the cancelled jobs that have no impossible condition left, or let them wait for a
        worker if no open one has an end. Such a job takes its unique key again, unless another job
        holds it. Returns these jobs.
        """
        ...

    def take_changes(self) -> list[SourceChange]:
        """Remove and return the changes that earlier steps have left, in their order."""
        ...

    def put_changes(self, changes: Sequence[SourceChange]) -> None:
        """Leave changes to a later step."""
        ...


class FlowResolver:
    """Applies the changes of members in one atomic step, and what follows from them.

    Note the changes, and call `resolve` once at the end.

    Args:
        data: the flows and the conditions.
        limit: the most conditions to apply. The rest is left to a later step.
    """

    def __init__(self, data: FlowData, limit: int = MAX_RESOLVED) -> None:
        self._data = data
        self._left = limit
        self._changes: list[SourceChange] = []
        self._flows: dict[str, FlowInfo | None] = {}
        """The flows that were read, with their new counts."""
        self._changed_flows: set[str] = set()
        self._ended: Counter[tuple[str, State]] = Counter()
        """By flow and state, how many more members are in it; fewer after a replay."""

    def continue_changes(self) -> None:
        """Continue with what earlier steps have left."""
        self._changes += self._data.take_changes()

    def note_end(self, member: FlowMember, state: State) -> None:
        """Note that a job has ended in this state."""
        succeeded = state is State.COMPLETED
        self._note(
            SourceKind.JOB, member.job_id, Transition.SUCCEEDED if succeeded else Transition.FAILED
        )
        if member.flow is not None:
            self._ended[member.flow, state] += 1

    def note_ends(self, counts: Mapping[str, int], awaited: Iterable[str], state: State) -> None:
        """Note that several jobs have ended in this state: how many in each flow, and the ids of
        those for which other jobs wait.
        """
        change = Transition.SUCCEEDED if state is State.COMPLETED else Transition.FAILED
        for job_id in awaited:
            self._note(SourceKind.JOB, job_id, change)
        for flow_id, count in counts.items():
            self._ended[flow_id, state] += count

    def note_replay(self, member: FlowMember) -> None:
        """Note that a dead letter waits again.

        If its flow has `fail_fast`, what that cancelled waits again too, also if other members stay
        failed. The next failure cancels it again.
        """
        self.note_reopened(member, State.FAILED)
        root = self._read_root(member.flow)
        if root is not None and root.fail_fast:
            self._note(SourceKind.FLOW, root.id, Transition.REOPENED)

    def note_reopened(self, member: FlowMember, state: State) -> None:
        """Note that a job, which had ended in this state, waits again."""
        self._note(SourceKind.JOB, member.job_id, Transition.REOPENED)
        if member.flow is not None:
            self._ended[member.flow, state] -= 1

    def note_new_flow(self, flow: FlowInfo) -> None:
        """Note that a flow was stored. It ends at once if it has no members."""
        if not flow.unfinished:
            self._flows[flow.id] = flow
            self._note_flow_change(msgspec.structs.replace(flow, unfinished=1), flow)

    def note_growth(self, flow_id: str, count: int, now: float) -> None:
        """Note that this number of members was added to a flow that has not ended, at this time in
        epoch seconds.
        """
        flow = self._read_flow(flow_id)
        if flow is not None and (count or flow.is_open):
            grown_at = now if flow.is_open else None
            counts = _count_more(flow, count)
            self._change_flow(msgspec.structs.replace(flow, grown_at=grown_at), counts)

    def note_closed(self, flow_id: str, *, is_late: bool = False) -> None:
        """Note that a flow is closed, if it is open; with `is_late`, because it got no members.

        The member that stands for those that may come goes away. If it is late, it counts as
        cancelled, with as many others as the flow tolerates: it ends as cancelled or failed. With
        `fail_fast`, this cancels the members that have not started, as each failure does.
        """
        flow = self._read_flow(flow_id)
        if flow is None or not flow.is_open:
            return
        closed = msgspec.structs.replace(flow, grown_at=None)
        if not is_late:
            self._change_flow(closed, _count_more(flow, -1))
            return
        counts = {
            "members": flow.members + flow.max_failed,
            "added": flow.added + flow.max_failed,
            "unfinished": flow.unfinished - 1,
            "cancelled": flow.cancelled + flow.max_failed + 1,
        }
        self._change_flow(closed, counts)
        self._note_failure(self._read_root(flow_id))

    def note_condition(self, source: WaitSource, ended: State | FlowInfo) -> None:
        """Note that a new job has a condition on a source that was stored before.

        `ended`: the state of the job, or the flow.
        """
        change = find_change(ended)
        if change is not None and SourceChange(source, change) not in self._changes:
            self._changes.append(SourceChange(source, change))

    def note_suspended(self, sources: Collection[WaitSource]) -> None:
        """Note that a durable run was suspended, and waits for these sources."""
        flow_ids = [source.id for source in sources if source.kind is SourceKind.FLOW]
        self._read_flows(flow_ids)
        for source in sources:
            match source.kind:
                case SourceKind.FLOW:
                    flow = self._flows[source.id]
                    is_met = flow is None or not flow.unfinished
                case SourceKind.SIGNAL:
                    is_met = self._data.has_signal(source)
                case _:
                    is_met = False  # `resolve` finds the times that have come
            if is_met:
                self._note(source.kind, source.id, Transition.SUCCEEDED)

    def note_signal(self, source: WaitSource) -> None:
        """Note that a job got a signal."""
        self._note(source.kind, source.id, Transition.SUCCEEDED)

    def resolve(self) -> None:
        """Resume, cancel and suspend the jobs that the noted changes concern, and store all.

        Durable runs whose time has come are resumed first.
        """
        due = self._data.list_due(self._left)
        if due:
            self._left -= len(due)
            self._data.meet(due)
        self._count_ended()
        while self._changes and self._left > 0:
            changes = self._data.select_awaited(self._take_level())
            waiters = self._data.list_waiters(changes, self._left + 1)
            if len(waiters) > self._left:
                del waiters[self._left :]
                self._changes = changes + self._changes
            self._left -= len(waiters)
            self._apply(waiters, {change.source: change.change for change in changes})
            self._count_ended()
        self._changes = self._data.select_awaited(self._changes)
        if self._changes:
            self._data.put_changes(self._changes)
            self._changes = []
        changed = [self._flows[flow_id] for flow_id in sorted(self._changed_flows)]
        if changed:
            self._data.save_flows([flow for flow in changed if flow is not None])
        self._changed_flows.clear()

    def _take_level(self) -> list[SourceChange]:
        """Remove and return the first change of each source."""
        level: dict[WaitSource, SourceChange] = {}
        later = []
        for change in self._changes:
            if change.source in level:
                later.append(change)
            else:
                level[change.source] = change
        self._changes = later
        return list(level.values())

    def _apply(self, waiters: Sequence[Waiter], changes: dict[WaitSource, Transition]) -> None:
        """Apply the changes of their sources to these conditions."""
        met, impossible, reopened = [], [], []
        for waiter in waiters:
            match judge(waiter.on, changes[waiter.source]):
                case True:
                    met.append(waiter)
                case False:
                    impossible.append(waiter)
                case None:
                    reopened.append(waiter)
        if met:
            self._data.meet(met)
        if impossible:
            for member in self._data.cancel(impossible):
                self.note_end(member, State.CANCELLED)
        if reopened:
            for member in self._data.reopen(reopened):
                self.note_reopened(member, State.CANCELLED)

    def _count_ended(self) -> None:
        """Count the members that have ended, or wait again, in their flows."""
        if not self._ended:
            return
        by_flow: dict[str, dict[State, int]] = {}
        for (flow_id, state), count in self._ended.items():
            by_flow.setdefault(flow_id, {})[state] = count
        self._ended = Counter()
        self._read_flows(by_flow)
        for flow_id, ended in by_flow.items():
            flow = self._flows[flow_id]
            if flow is not None:
                counts = {state.value: _count(flow, state) + ended[state] for state in ended}
                counts["unfinished"] = flow.unfinished - sum(ended.values())
                self._change_flow(flow, counts)
                if ended.get(State.FAILED, 0) > 0 or ended.get(State.CANCELLED, 0) > 0:
                    self._note_failure(self._read_root(flow_id))

    def _note_failure(self, root: FlowInfo | None) -> None:
        """Note that a member failed, if the failure of its flow cancels the others."""
        if root is None or not (root.fail_fast and root.has_failed and root.unfinished):
            return
        change = SourceChange(WaitSource(SourceKind.FLOW, root.id), Transition.FAILING)
        if change not in self._changes:
            self._changes.append(change)

    def _read_root(self, flow_id: str | None) -> FlowInfo | None:
        """Return the flow that a flow or a group is in."""
        flow = self._read_flow(flow_id)
        while flow is not None and flow.parent is not None:
            flow = self._read_flow(flow.parent)
        return flow

    def _read_flow(self, flow_id: str | None) -> FlowInfo | None:
        if flow_id is None:
            return None
        self._read_flows([flow_id])
        return self._flows[flow_id]

    def _read_flows(self, ids: Collection[str]) -> None:
        """Read those of these flows that were not read yet, at once."""
        missing = [flow_id for flow_id in ids if flow_id not in self._flows]
        if missing:
            self._flows |= dict.fromkeys(missing)
            self._flows |= {flow.id: flow for flow in self._data.read_flows(missing)}

    def _change_flow(self, flow: FlowInfo, counts: dict[str, int]) -> None:
        """Change the counts of a flow. Note its failure, its end, or that it runs again."""
        changed = self._flows[flow.id] = msgspec.structs.replace(flow, **counts)
        self._changed_flows.add(flow.id)
        self._note_flow_change(flow, changed)

    def _note_flow_change(self, before: FlowInfo, flow: FlowInfo) -> None:
        """Note what changed in a flow, and count it in the flow of which it is a member."""
        had_ended, has_ended = not before.unfinished, not flow.unfinished
        had_failed, has_failed = before.has_failed, flow.has_failed
        if (had_ended, had_failed) == (has_ended, has_failed) and not has_failed:
            return
        change = None
        if has_ended and (not had_ended or has_failed != had_failed):
            change = Transition.FAILED if has_failed else Transition.SUCCEEDED
        elif has_failed and not had_failed:
            change = Transition.FAILING
        elif not has_ended and not has_failed and (had_ended or had_failed):
            change = Transition.REOPENED
        if change is not None:
            self._note(SourceKind.FLOW, flow.id, change)
        parent = self._read_flow(flow.parent)
        if parent is None:
            return
        counted = Counter(_list_parent_counts(flow))
        counted.subtract(_list_parent_counts(before))
        if any(counted.values()):
            counts = {name: getattr(parent, name) + count for name, count in counted.items()}
            self._change_flow(parent, counts)

    def _note(self, kind: SourceKind, source_id: str, change: Transition) -> None:
        self._changes.append(SourceChange(WaitSource(kind, source_id), change))


def judge(on: On | None, change: Transition) -> bool | None:
    """Return whether a change meets a condition, or makes it impossible; None: it is open again.

    >>> judge(On.SUCCESS, Transition.FAILING), judge(On.FAILURE, Transition.FAILING)
    (False, True)
    """
    if change is Transition.REOPENED:
        return None
    if on is On.FINISHED or on is On.ANY:
        return True
    if on is None:
        return change is Transition.SUCCEEDED
    return (change is Transition.SUCCEEDED) is (on is On.SUCCESS)


def choose_reason(on: On | None) -> str:
    """Return why a job is cancelled whose condition is impossible.

    >>> choose_reason(On.SUCCESS), choose_reason(On.FAILURE)
    ('dependency', 'not needed')
    """
    return NOT_NEEDED if on is On.FAILURE else DEPENDENCY


def find_change(ended: State | FlowInfo) -> Transition | None:
    """Return the change of a stored source that a new condition on it follows; None: none yet."""
    if isinstance(ended, FlowInfo):
        if ended.has_failed:
            return Transition.FAILING if ended.unfinished else Transition.FAILED
        return None if ended.unfinished else Transition.SUCCEEDED
    if not ended.finished:
        return None
    return Transition.SUCCEEDED if ended is State.COMPLETED else Transition.FAILED


def make_flow(new: NewFlow, now: float) -> FlowInfo:
    """Return a flow as it is stored first, at this time in epoch seconds."""
    is_open = new.growth is Growth.OPEN
    members = new.members + is_open
    return FlowInfo(
        id=new.id,
        name=new.name,
        parent=new.parent,
        members=members,
        unfinished=members,
        max_failed=new.max_failed,
        fail_fast=new.fail_fast,
        added=int(is_open),
        created_at=now,
        grown_at=now if is_open else None,
        finished_at=None if members else now,
    )


def select_new_flows(flows: Sequence[NewFlow]) -> list[NewFlow]:
    """Return those of the flows of a call that it stores if they are new."""
    return [flow for flow in flows if not flow.growth.adds]


def check_growth(
    jobs: Sequence[NewJob],
    flows: Sequence[NewFlow],
    stored: Mapping[str, FlowInfo],
    known_jobs: Collection[str],
) -> None:
    """Raise `FlowNotFound` if a flow that gets members is unknown, and `InvalidJob` if it ended
    before it got them.

    `known_jobs`: those jobs of the call that are stored. They are in the flow already.
    """
    check_grown(flows, stored)
    for flow in flows:
        if (
            flow.growth.adds
            and not stored[flow.id].unfinished
            and any(
                job.options.counted_flow == flow.id and job.id not in known_jobs for job in jobs
            )
        ):
            raise make_ended_error(stored[flow.id])


def check_grown(flows: Sequence[NewFlow], known_flows: Collection[str]) -> None:
    """Raise `FlowNotFound` if a flow that gets members, or is closed, is unknown."""
    for flow in flows:
        if flow.growth.adds and flow.id not in known_flows:
            raise FlowNotFound(flow.id)


def make_ended_error(flow: FlowInfo) -> InvalidJob:
    """Return the error of a call that adds members to a flow which has ended."""
    return InvalidJob(
        f"no members can be added to the flow {flow.id!r}: it has ended, {flow.state}"
    )


def count_growth(new_jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> dict[str, int]:
    """Return how many of the jobs that a call stores are added to each flow that gets members."""
    counted = Counter(job.options.counted_flow for job in new_jobs)
    return {flow.id: counted[flow.id] for flow in flows if flow.growth.adds}


def refuse_growth(flows: Sequence[NewFlow]) -> None:
    """Raise `InvalidJob` if a call in a caller's transaction adds members to a stored flow.

    The transaction would delay the ends of all members of the flow.
    """
    for flow in flows:
        if flow.growth.adds:
            raise InvalidJob(
                f"members are not added to the flow {flow.id!r} in a transaction; add them after "
                "the commit"
            )


def add_ended_flows(
    jobs: Sequence[NewJob], known: KnownJobs, flows: Mapping[str, FlowInfo]
) -> KnownJobs:
    """Return what is known about the jobs of a call. Those of flows that have ended count as known.

    They were stored once, and may have been pruned since. A repeat of the call does not run them.
    """
    digests = dict(known.digests)
    for job in jobs:
        if _has_ended(job.options.flow, flows) and job.id not in digests:
            digests[job.id] = compute_digest(job.name, job.payload)
    return known._replace(digests=digests)


def check_same_flow(new: NewFlow, stored: FlowInfo) -> None:
    """Raise `InvalidJob` if a stored flow is another one with the same id."""
    declared = stored.members - stored.added
    values = (stored.name, stored.parent, declared, stored.max_failed, stored.fail_fast)
    if values != (new.name, new.parent, new.members, new.max_failed, new.fail_fast):
        raise InvalidJob(
            f"another flow with the id {new.id!r} is kept: it has the name {stored.name!r} and"
            f" {declared} {'member' if declared == 1 else 'members'}; use another id"
        )


def check_same_groups(flows: Sequence[NewFlow], stored: Collection[str]) -> None:
    """Raise `InvalidJob` if a flow of a call is stored without one of the groups of the call: it is
    another one with the same id, and the group would never end.
    """
    declared = select_new_flows(flows)
    kept = {flow.id for flow in declared if flow.id in stored}
    for flow in declared:
        if flow.id not in kept and flow.parent in kept:
            raise make_other_groups_error(flow.parent)


def make_other_groups_error(flow_id: str | None) -> InvalidJob:
    """Return the error of a call with a flow that is stored with other groups."""
    return InvalidJob(
        f"another flow with the id {flow_id!r} is kept: it has other groups; use another id"
    )


def list_unended(jobs: Sequence[NewJob], flows: Mapping[str, FlowInfo]) -> list[NewJob]:
    """Return the jobs of a call that are not in a flow which has ended. `flows`: the stored ones.

    The others are not stored again, so their sources may be gone.
    """
    return [job for job in jobs if not _has_ended(job.options.flow, flows)]


def refuse_strangers(
    jobs: Sequence[NewJob], known: KnownJobs, stored_flows: Mapping[str, str | None]
) -> KnownJobs:
    """Return what is known about the jobs of a call. A stored job that has the id of a member and
    is not in its flow is another job: a conflict.

    `stored_flows`: the flow of each stored job that has an id of the call; None: it is in none.
    """
    digests = dict(known.digests)
    for job in jobs:
        if job.id in stored_flows and stored_flows[job.id] != job.options.flow:
            digests[job.id] = b""
    return known._replace(digests=digests)


def check_graph(
    jobs: Sequence[NewJob],
    flows: Sequence[NewFlow],
    known_flows: Collection[str],
    known_jobs: Collection[str],
) -> None:
    """Raise `InvalidJob` if a flow or a source that is named here is unknown.

    `known_jobs`: the jobs of `flows` that the call names or stores. Only these may be sources.
    """
    for flow in flows:
        if flow.parent is not None and flow.parent not in known_flows:
            raise InvalidJob(f"the group {flow.id!r} is in an unknown flow: {flow.parent!r}")
    for job in jobs:
        flow_id = job.options.counted_flow
        if flow_id is not None and flow_id not in known_flows:
            raise InvalidJob(f"the job {job.id!r} is a member of an unknown flow: {flow_id!r}")
        for condition in job.options.conditions:
            kind, source_id = condition.source.kind, condition.source.id
            if kind is SourceKind.FLOW and source_id not in known_flows:
                raise InvalidJob(f"the job {job.id!r} waits for an unknown flow: {source_id!r}")
            if kind is SourceKind.JOB and source_id not in known_jobs:
                raise InvalidJob(
                    f"the job {job.id!r} waits for {source_id!r}, which is unknown or a job of no"
                    " flow of this call"
                )


def list_members(jobs: Sequence[NewJob], flows: Sequence[NewFlow]) -> set[str]:
    """Return the ids of the jobs that belong to these flows."""
    flow_ids = {flow.id for flow in flows}
    return {job.id for job in jobs if job.options.flow in flow_ids}


def _has_ended(flow_id: str | None, flows: Mapping[str, FlowInfo]) -> bool:
    """Return whether a flow is stored and has ended."""
    flow = None if flow_id is None else flows.get(flow_id)
    return flow is not None and not flow.unfinished


def _list_parent_counts(group: FlowInfo) -> list[str]:
    """Return the counts in which a group is in the flow of which it is a member."""
    counts = ["unfinished"] if group.unfinished else []
    if group.has_failed:
        counts.append("failed" if group.failed else "cancelled")
    elif not group.unfinished:
        counts.append("completed")
    return counts


def _count_more(flow: FlowInfo, count: int) -> dict[str, int]:
    """Return the counts of a flow that has this number of unfinished members more."""
    return {
        "members": flow.members + count,
        "unfinished": flow.unfinished + count,
        "added": flow.added + count,
    }


def _count(flow: FlowInfo, state: State) -> int:
    """Return how many members of a flow ended in this state."""
    count: int = getattr(flow, state.value)
    return count
