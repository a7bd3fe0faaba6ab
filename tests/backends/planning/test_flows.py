"""The planner of flows against a specification that computes all states anew."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nimburion.backends.memory import MemoryBackend, transitions
from nimburion.backends.planning.flows import (
    FlowResolver,
    Transition,
    choose_reason,
    find_change,
    judge,
)
from nimburion.core.backend import Backend
from nimburion.core.flows import FlowInfo, FlowState, NewFlow, On, SourceKind
from nimburion.core.job import DEPENDENCY, NOT_NEEDED, NewJob, State
from nimburion.core.lease import Lease
from nimburion.core.settlement import Cancelled, Completed, Failed, Settlement
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import FAILURE, Harness
from tests.model.machine import NAMES, QUEUES, make_graph

ENDS: dict[State, Callable[[Lease], Settlement]] = {
    State.COMPLETED: Completed,
    State.FAILED: lambda lease: Failed(lease, "permanent", FAILURE),
    State.CANCELLED: lambda lease: Cancelled(lease, "no more"),
}


class Specification:
    """The states of the jobs of one flow, from the ends of those that ran or were cancelled."""

    def __init__(self, jobs: list[NewJob], flows: list[NewFlow]) -> None:
        self.jobs = {job.id: job for job in jobs}
        self.flows = {flow.id: flow for flow in flows}
        self.states = {job.id: State.PENDING for job in jobs}
        self.reasons: dict[str, str] = {}
        for job in jobs:
            if job.options.conditions:
                self.states[job.id] = State.SUSPENDED
        self.settle_all()

    def settle_all(self) -> None:
        """Resume and cancel suspended jobs until nothing changes."""
        changed = True
        while changed:
            changed = False
            for job in self.jobs.values():
                if self.states[job.id] is not State.SUSPENDED:
                    continue
                judged = [(one, self.judge(one.source, one.on)) for one in job.options.conditions]
                impossible = [one for one, is_met in judged if is_met is False]
                if impossible:
                    self.states[job.id] = State.CANCELLED
                    reasons = {choose_reason(one.on) for one in impossible}
                    self.reasons[job.id] = min(reasons) if len(reasons) == 1 else "either"
                    changed = True
                elif all(is_met for _, is_met in judged):
                    self.states[job.id] = State.PENDING
                    changed = True

    def judge(self, source: object, on: On) -> bool | None:
        """Return whether a condition is met, or cannot be met (False); None: neither yet."""
        kind, source_id = source.kind, source.id  # type: ignore[attr-defined]
        if kind is SourceKind.JOB:
            state = self.states[source_id]
            failed, ended = state in {State.FAILED, State.CANCELLED}, state.finished
        else:
            failed, ended = self.has_failed(source_id), self.count_unfinished(source_id) == 0
        if on is On.FINISHED:
            return True if ended else None
        if failed:
            return on is On.FAILURE
        return (on is On.SUCCESS) if ended else None

    def has_failed(self, flow_id: str) -> bool:
        """Return whether more members have failed than the flow tolerates."""
        failed = sum(
            self.states[job.id] in {State.FAILED, State.CANCELLED} for job in self.members(flow_id)
        )
        failed += sum(self.has_failed(group) for group in self.groups(flow_id))
        return failed > self.flows[flow_id].max_failed

    def count_unfinished(self, flow_id: str) -> int:
        """Return how many members have not ended."""
        jobs = sum(not self.states[job.id].finished for job in self.members(flow_id))
        return jobs + sum(self.count_unfinished(group) > 0 for group in self.groups(flow_id))

    def members(self, flow_id: str) -> list[NewJob]:
        """Return the jobs that a flow or a group counts."""
        return [job for job in self.jobs.values() if job.options.counted_flow == flow_id]

    def groups(self, flow_id: str) -> list[str]:
        """Return the groups that are members of a flow."""
        return [flow.id for flow in self.flows.values() if flow.parent == flow_id]


async def check_run(luck: Random, number: int, backend: Backend, clock: FakeClock) -> None:
    """Run a flow, end its jobs at random, and compare all states after each end."""
    jobs, flows = make_graph(number)
    await backend.open()
    harness = Harness(clock, [backend])
    await backend.producing.enqueue(jobs, flows)
    expected = Specification(jobs, flows)
    worker = await harness.worker(names=NAMES, queues=QUEUES)
    while True:
        clock.advance(5.0)
        for _ in range(50):  # what earlier steps have left
            await backend.consuming.promote(100)
        await check_states(backend, expected)
        deliveries = await worker.take(100)
        if not deliveries:
            break
        for delivery in deliveries:
            lease, state = delivery.lease, luck.choice([State.COMPLETED, *ENDS])
            if luck.random() < 0.3:
                await backend.consuming.release(worker.id, [lease])
                continue
            await worker.settle(ENDS[state](lease))
            expected.states[lease.job_id] = state
        expected.settle_all()
    await backend.close()


async def check_states(backend: Backend, expected: Specification) -> None:
    """Compare the states of jobs and flows with the specification."""
    for job_id, state in expected.states.items():
        record = await backend.reads.get_job(job_id)
        assert record.state is state, job_id
        reason = expected.reasons.get(job_id, record.reason)
        assert reason in {record.reason, "either"}, job_id
    for flow_id in expected.flows:
        flow = (await backend.reads.get_flow(flow_id))[0]
        assert flow.unfinished == expected.count_unfinished(flow_id)
        assert flow.has_failed is expected.has_failed(flow_id)


@pytest.mark.parametrize("limit", [1, 2, 500])
@given(seed=st.integers(0, 2**32 - 1))
def test_the_states_follow_from_the_ends(limit: int, seed: int) -> None:
    """However few conditions a step may apply, the steps after it do the rest."""
    luck = Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transitions, "FlowResolver", partial(FlowResolver, limit=limit))
        clock = FakeClock()
        backend = MemoryBackend(clock=clock)
        asyncio.run(check_run(luck, luck.randrange(10_000), backend, clock))


@pytest.mark.parametrize(
    ("on", "met_by", "impossible_by"),
    [
        (On.SUCCESS, {Transition.SUCCEEDED}, {Transition.FAILING, Transition.FAILED}),
        (On.FAILURE, {Transition.FAILING, Transition.FAILED}, {Transition.SUCCEEDED}),
        (On.FINISHED, {Transition.SUCCEEDED, Transition.FAILED}, set()),
    ],
)
def test_the_table_of_judge(
    on: On, met_by: set[Transition], impossible_by: set[Transition]
) -> None:
    ends = set(Transition) - {Transition.REOPENED}
    if on is On.FINISHED:
        ends.discard(Transition.FAILING)  # `list_waiters` leaves these conditions out
    assert {change for change in ends if judge(on, change)} == met_by
    assert {change for change in ends if judge(on, change) is False} == impossible_by
    assert judge(on, Transition.REOPENED) is None


def test_the_change_of_a_source_that_ended_before() -> None:
    states = {
        State.PENDING: None,
        State.SUSPENDED: None,
        State.COMPLETED: Transition.SUCCEEDED,
        State.FAILED: Transition.FAILED,
        State.CANCELLED: Transition.FAILED,
    }
    for state, change in states.items():
        assert find_change(state) is change
    flow = FlowInfo(id="f", name="f", members=2, unfinished=1, failed=1)
    assert (find_change(flow), flow.state) == (Transition.FAILING, FlowState.RUNNING)


def test_the_reasons() -> None:
    assert [choose_reason(on) for on in (On.SUCCESS, On.FAILURE)] == [DEPENDENCY, NOT_NEEDED]
