"""The flows of a chaos run, and what must be true of them after it.

They follow from the seed, so the producer and the harness make the same. A flow is a group of
members, a join that takes their results, a job behind the join, and a callback for each end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import NamedTuple

import msgspec

from benchmarks.chaos.application import JOIN, choose_name
from benchmarks.chaos.event_log import Joined
from benchmarks.chaos.reconcile import End, EventLog
from nimburion.backends.planning.flows import REOPENED_REASONS
from nimburion.core.flows import (
    FlowInfo,
    NewFlow,
    On,
    ResultRef,
    SourceKind,
    WaitCondition,
    WaitSource,
)
from nimburion.core.job import JobOptions, NewJob, State
from tests.simulation.flow_ledger import FlowLedger

FEWEST, MOST = 5, 200
"""The members of the group of one flow."""
CALLBACKS = (On.SUCCESS, On.FAILURE, On.FINISHED)
"""The ends of a flow that have a callback each."""
TOLERANCE = 0.2
"""The share of flows that tolerate any failure of members."""


class PlannedFlow(NamedTuple):
    """The jobs of one enqueue, with their flow and its group."""

    jobs: list[NewJob]
    flows: list[NewFlow]


def make_flows(count: int, seed: int) -> list[PlannedFlow]:
    """Return so many flows; most are small."""
    random = Random(seed)
    return [_make_flow(f"flow-{number}", random) for number in range(count)]


def count_jobs(flows: Sequence[PlannedFlow]) -> int:
    """Count the jobs of flows, with their callbacks."""
    return sum(len(flow.jobs) for flow in flows)


def _make_flow(flow_id: str, random: Random) -> PlannedFlow:
    count = int(FEWEST * (MOST / FEWEST) ** random.random())
    group = f"{flow_id}.parts"
    tolerated = count if random.random() < TOLERANCE else 0
    end = WaitSource(SourceKind.FLOW, flow_id)
    jobs = [
        _make_job(f"{flow_id}.{on}", "brief", flow_id, "", source=end, on=on) for on in CALLBACKS
    ]
    jobs += [
        _make_job(f"{group}.{number}", _choose_member(random), flow_id, group)
        for number in range(count)
    ]
    parts = WaitSource(SourceKind.FLOW, group)
    join = _make_job(
        f"{flow_id}.join",
        JOIN,
        flow_id,
        None,
        source=parts,
        on=random.choice((On.SUCCESS, On.FINISHED)),
    )
    results = {"results": ResultRef(group, count)}
    options = msgspec.structs.replace(join.options, results=results)
    behind = WaitSource(SourceKind.JOB, join.id)
    jobs += [
        msgspec.structs.replace(join, options=options),
        _make_job(f"{flow_id}.behind", "brief", flow_id, None, source=behind),
    ]
    flows = [
        NewFlow(id=flow_id, name="chaos", members=3, max_failed=3 if tolerated else 0),
        NewFlow(id=group, name="parts", members=count, parent=flow_id, max_failed=tolerated),
    ]
    return PlannedFlow(jobs, flows)


def _choose_member(random: Random) -> str:
    """Draw the name of a member. Nearly half of the flows of 100 members have one that fails."""
    return "brief" if random.random() < 0.5 else choose_name(random)


def _make_job(
    job_id: str,
    name: str,
    flow_id: str,
    group: str | None,
    *,
    source: WaitSource | None = None,
    on: On = On.SUCCESS,
) -> NewJob:
    conditions = () if source is None else (WaitCondition(source, on),)
    options = JobOptions(flow=flow_id, group=group, conditions=conditions)
    return NewJob(job_id, name, "default", b"{}", options=options)


class FlowFigures(msgspec.Struct):
    """What became of the flows. Violations are lists of ids; all of them must be empty."""

    flows: int = 0
    members: int = 0
    joins: int = 0
    """Jobs that waited for others."""
    joins_run: int = 0
    joins_cancelled: int = 0
    """They were not needed, or what they waited for had failed."""
    results_compared: int = 0
    running: list[str] = []
    """Flows that have not ended, or that count their members wrongly."""
    missing: list[str] = []
    """Jobs that wait, or were cancelled although what they waited for came."""
    needless: list[str] = []
    """Jobs that ran although what they waited for did not come."""
    wrong: list[str] = []
    """Joins that got other results than those of the completed members, in their order."""

    @property
    def violations(self) -> dict[str, list[str]]:
        """The flows and jobs of each violation that occurred."""
        named = {
            "flow did not end with the counts of its members": self.running,
            "join missing": self.missing,
            "join ran without its conditions": self.needless,
            "join got wrong results": self.wrong,
        }
        return {name: ids for name, ids in named.items() if ids}


def reconcile_flows(
    planned: Sequence[PlannedFlow],
    log: EventLog,
    ends: Mapping[str, End],
    infos: Mapping[str, FlowInfo],
) -> FlowFigures:
    """Compare what the backend says of flows, by id, with how their jobs ended."""
    ledger = FlowLedger({job: end.state for job, end in ends.items() if end.state.finished})
    for one in planned:
        ledger.note_enqueued(one.jobs, one.flows)
    figures = FlowFigures(flows=len(planned))
    for flow in ledger.flows.values():
        if flow.id not in infos or not ledger.agrees(infos[flow.id]):
            figures.running.append(flow.id)
    for job in ledger.jobs.values():
        figures.members += job.options.counted_flow is not None
        if job.options.conditions:
            _check_join(job, ledger, ends.get(job.id), figures)
        if job.name == JOIN and (joined := log.joined.get(job.id)):
            figures.results_compared += 1
            if not _has_right_results(job, joined, ends):
                figures.wrong.append(job.id)
    return figures


def _check_join(job: NewJob, ledger: FlowLedger, end: End | None, figures: FlowFigures) -> None:
    figures.joins += 1
    verdicts = {ledger.judge(condition) for condition in job.options.conditions}
    if end is None or not end.state.finished:
        figures.missing.append(job.id)
    elif end.reason in REOPENED_REASONS:
        figures.joins_cancelled += 1
        if verdicts == {True}:
            figures.missing.append(job.id)
    else:
        figures.joins_run += 1
        if verdicts != {True} and end.state is not State.CANCELLED:
            figures.needless.append(job.id)


def _has_right_results(job: NewJob, joined: Sequence[Joined], ends: Mapping[str, End]) -> bool:
    """Tell whether each run got the tokens of the members that completed."""
    members = job.options.results["results"].list_ids()
    expected = [ends[one].token for one in members if ends[one].state is State.COMPLETED]
    return all(one.results == expected for one in joined)
