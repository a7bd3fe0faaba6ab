"""What a simulation knows of flows: their graphs, which never change, and how their jobs ended.

It decides by itself which conditions are met, and compares: no job starts before its conditions are
met, and at the end each flow has the counts of its members, and nothing waits or was cancelled
without a reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from random import Random
from typing import NamedTuple

from nimburion.backends.planning.flows import REOPENED_REASONS
from nimburion.core.flows import ENDS, FlowInfo, NewFlow, On, SourceKind, WaitCondition, WaitSource
from nimburion.core.job import JobOptions, JobRecord, NewJob, State

NAMES = ("plain", "plain", "plain", "limited", "timed")
"""The job names of members, to draw from."""


class Counts(NamedTuple):
    """The members of a flow or a group, by their ends."""

    unfinished: int
    completed: int
    failed: int
    cancelled: int
    has_failed: bool


class FlowLedger:
    """The graphs of all flows of a simulation.

    `ended`: the state of each job that has ended, which the ledger keeps up to date.
    """

    def __init__(self, ended: Mapping[str, State]) -> None:
        self._ended = ended
        self.flows: dict[str, NewFlow] = {}
        """Flows and groups, by id."""
        self.jobs: dict[str, NewJob] = {}
        """Members and callbacks that were stored, by id."""
        self._members: dict[str, list[str]] = {}
        """The jobs that each flow or group counts, and ..."""
        self._groups: dict[str, list[str]] = {}
        """... the groups inside it."""
        self._replayed: set[str] = set()
        """Flows of which a member was replayed. Their failures may have been undone."""

    def note_enqueued(self, jobs: Iterable[NewJob], flows: Iterable[NewFlow]) -> None:
        """Note that these jobs of these flows are stored."""
        for flow in flows:
            if flow.id not in self.flows and flow.parent is not None:
                self._groups.setdefault(flow.parent, []).append(flow.id)
            self.flows[flow.id] = flow
        for job in jobs:
            counted = job.options.counted_flow
            if job.id not in self.jobs and counted is not None:
                self._members.setdefault(counted, []).append(job.id)
            self.jobs[job.id] = job

    def note_replayed(self, job_id: str) -> None:
        """Note that a job was replayed."""
        flow_id = self.jobs[job_id].options.flow
        assert flow_id is not None
        self._replayed.add(flow_id)

    def is_replayed(self, job_id: str) -> bool:
        """Tell whether a member of the flow of this job was replayed."""
        return self.jobs[job_id].options.flow in self._replayed

    def list_unfinished(self) -> list[str]:
        """Return the ids of the jobs that have not ended."""
        return [job_id for job_id in self.jobs if job_id not in self._ended]

    def check_start(self, job_id: str) -> None:
        """Check that each condition of a job is met that starts now."""
        job = self.jobs.get(job_id)
        for condition in () if job is None else job.options.conditions:
            # A replay may undo what met a condition before. A job that succeeded is not replayed.
            is_lasting = condition == WaitCondition(WaitSource(SourceKind.JOB, condition.source.id))
            was_met = self.is_replayed(job_id) and not is_lasting
            assert was_met or self.judge(condition), f"{job_id} came before {condition}"

    def check_end(self, record: JobRecord, *, has_run: bool) -> None:
        """Check that a job which has ended had a reason to run, or not to run."""
        conditions = self.jobs[record.id].options.conditions
        impossible = [one for one in conditions if self.judge(one) is False]
        if record.reason in REOPENED_REASONS:
            assert impossible, f"{record.id} was cancelled, and no condition is impossible"
        elif record.state is not State.CANCELLED and not self.is_replayed(record.id):
            assert not impossible, f"{record.id} is {record.state} in spite of {impossible}"
        assert has_run or record.state is not State.COMPLETED

    def check_flow(self, info: FlowInfo) -> None:
        """Check that a flow has ended, with the counts of its members."""
        assert self.agrees(info), f"{info} has not ended as its members: {self.count(info.id)}"

    def agrees(self, info: FlowInfo) -> bool:
        """Tell whether a flow has ended, with the counts of its members."""
        counts = info.unfinished, info.completed, info.failed, info.cancelled, info.has_failed
        return not info.unfinished and counts == self.count(info.id)

    def count(self, flow_id: str) -> Counts:
        """Count the members of a flow or a group."""
        flow = self.flows[flow_id]
        members = self._members.get(flow_id, ())
        ends = [self._ended[job_id] for job_id in members if job_id in self._ended]
        unfinished = flow.members - len(ends)
        completed, failed, cancelled = map(
            ends.count, (State.COMPLETED, State.FAILED, State.CANCELLED)
        )
        for group in self._groups.get(flow_id, ()):
            inside = self.count(group)
            unfinished -= not inside.unfinished
            completed += not inside.unfinished and not inside.has_failed
            failed += inside.has_failed and inside.failed > 0
            cancelled += inside.has_failed and inside.failed == 0
        return Counts(
            unfinished, completed, failed, cancelled, failed + cancelled > flow.max_failed
        )

    def judge(self, condition: WaitCondition) -> bool | None:
        """Return whether a condition is met or impossible; None: neither yet."""
        source = condition.source
        if source.kind is SourceKind.FLOW:
            counts = self.count(source.id)
            has_ended, has_failed = counts.unfinished == 0, counts.has_failed
        else:
            has_ended = source.id in self._ended
            has_failed = has_ended and self._ended[source.id] is not State.COMPLETED
        if condition.on is On.FINISHED:
            return True if has_ended else None
        if not has_ended and not has_failed:
            return None
        return has_failed is (condition.on is On.FAILURE)


def make_graph(random: Random, flow_id: str) -> tuple[list[NewJob], list[NewFlow]]:
    """Return the jobs of a random flow, and the flow with its groups.

    As `enqueue_flow` sorts them: callbacks first, then members, each after those it waits for.
    """
    groups = [f"{flow_id}.{name}" for name in "pq"[: random.randint(0, 2)]]
    # No job of a group may wait for what ends after a group: that could be a cycle.
    behind_groups = [WaitSource(SourceKind.FLOW, group) for group in groups]
    before_groups: list[WaitSource] = []
    jobs = []
    for position in range(random.randint(2, 7)):
        group = random.choice((None, *groups))
        known = before_groups if group is not None else before_groups + behind_groups
        waits = random.sample(known, min(len(known), random.choice((0, 1, 1, 2))))
        conditions = [WaitCondition(one, random.choice((On.SUCCESS, *ENDS))) for one in waits]
        jobs.append(_make_member(random, f"{flow_id}.{position}", flow_id, group, conditions))
        is_behind = not {*waits}.isdisjoint(behind_groups)
        (behind_groups if is_behind else before_groups).append(
            WaitSource(SourceKind.JOB, jobs[-1].id)
        )
    counted = [job.options.counted_flow for job in jobs]
    flow = NewFlow(
        id=flow_id,
        name="graph",
        members=counted.count(flow_id) + len(groups),
        max_failed=random.choice((0, 0, 1)),
    )
    inside = [
        NewFlow(
            id=group,
            name="group",
            members=counted.count(group),
            parent=flow_id,
            max_failed=random.choice((0, 0, 1)),
        )
        for group in groups
    ]
    end = WaitSource(SourceKind.FLOW, flow_id)
    callbacks = [
        _make_member(random, f"{flow_id}.{on}", flow_id, "", [WaitCondition(end, on)])
        for on in ENDS
    ]
    return callbacks + jobs, [flow, *inside]


def _make_member(
    random: Random,
    job_id: str,
    flow_id: str,
    group: str | None,
    conditions: Sequence[WaitCondition],
) -> NewJob:
    options = JobOptions(flow=flow_id, group=group, conditions=tuple(conditions))
    return NewJob(
        job_id,
        random.choice(NAMES),
        "default",
        b"{}",
        priority=random.randrange(10),
        options=options,
    )
