"""What the cases of flows share: members, flows, and the ends of jobs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from nimburion.core.flows import (
    FlowInfo,
    FlowState,
    NewFlow,
    On,
    SourceKind,
    WaitCondition,
    WaitSource,
)
from nimburion.core.job import JobOptions, NewJob
from nimburion.core.settlement import Cancelled, Completed, Failed, Retried
from nimburion.testing.contract.harness import FAILURE, HandDrivenWorker, Harness

FLOW = "import"
"""The id of the flow of most cases."""


def after(*ids: str, on: On = On.SUCCESS) -> tuple[WaitCondition, ...]:
    """Return conditions on the end of jobs."""
    return tuple(WaitCondition(WaitSource(SourceKind.JOB, job_id), on) for job_id in ids)


def after_flow(flow_id: str = FLOW, on: On = On.SUCCESS) -> tuple[WaitCondition, ...]:
    """Return the condition on the end of a flow or a group."""
    return (WaitCondition(WaitSource(SourceKind.FLOW, flow_id), on),)


def member(
    job_id: str,
    conditions: tuple[WaitCondition, ...] = (),
    *,
    flow: str | None = FLOW,
    group: str | None = None,
    **fields: object,
) -> NewJob:
    """Return a member of a flow that waits for these conditions."""
    options = JobOptions(flow=flow, group=group, conditions=conditions)
    return NewJob(job_id, "mail", "default", b'{"a":1}', options=options, **fields)  # type: ignore[arg-type]


def make_flow(members: int, *, max_failed: int = 0, flow_id: str = FLOW) -> NewFlow:
    """Return a flow with this number of members."""
    return NewFlow(id=flow_id, name="import file", members=members, max_failed=max_failed)


def make_group(group_id: str, members: int, *, parent: str = FLOW, max_failed: int = 0) -> NewFlow:
    """Return a group inside a flow."""
    return NewFlow(id=group_id, name="parts", members=members, parent=parent, max_failed=max_failed)


async def store(
    harness: Harness, jobs: Sequence[NewJob], *flows: NewFlow, members: int | None = None
) -> None:
    """Enqueue jobs with their flows. Without flows: one, of which all jobs are members."""
    stored = flows or (make_flow(len(jobs) if members is None else members),)
    results = await harness.backend.producing.enqueue(jobs, stored)
    assert {result.outcome for result in results} <= {"created"}


async def finish(worker: HandDrivenWorker, *ids: str) -> None:
    """Reserve jobs until these are among them, and complete these; release the others."""
    await end(worker, Completed, *ids)


async def fail(worker: HandDrivenWorker, *ids: str) -> None:
    """Reserve jobs until these are among them, and let these fail for good."""
    await end(worker, lambda lease: Failed(lease, "permanent", FAILURE), *ids)


async def end(worker: HandDrivenWorker, settle: Callable[..., object], *ids: str) -> None:
    """Reserve all jobs that wait, settle those with these ids, and release the others."""
    deliveries = await worker.take(1_000)
    held = {delivery.lease.job_id: delivery.lease for delivery in deliveries}
    assert held.keys() >= set(ids)
    others = [lease for job_id, lease in held.items() if job_id not in ids]
    await worker.backend.consuming.release(worker.id, others)
    await worker.settle(*(settle(held[job_id]) for job_id in ids))  # type: ignore[arg-type]


async def list_waiting(worker: HandDrivenWorker) -> list[str]:
    """Return the ids of the jobs that a worker could start now, in their order."""
    deliveries = await worker.take(1_000)
    leases = [delivery.lease for delivery in deliveries]
    await worker.backend.consuming.release(worker.id, leases)
    return [lease.job_id for lease in leases]


async def read_flow(harness: Harness, flow_id: str = FLOW) -> FlowInfo:
    """Return a flow or a group."""
    return (await harness.backend.reads.get_flow(flow_id))[0]


async def read_counts(
    harness: Harness, flow_id: str = FLOW
) -> tuple[FlowState, int, int, int, int]:
    """Return the state and the counts of a flow: unfinished, completed, failed, cancelled."""
    flow = await read_flow(harness, flow_id)
    return flow.state, flow.unfinished, flow.completed, flow.failed, flow.cancelled


async def _fail_attempt(_: Harness, worker: HandDrivenWorker, job_id: str) -> None:
    await fail(worker, job_id)


async def _cancel_itself(_: Harness, worker: HandDrivenWorker, job_id: str) -> None:
    await end(worker, lambda lease: Cancelled(lease, "no more"), job_id)


async def _cancel_waiting(harness: Harness, _: HandDrivenWorker, job_id: str) -> None:
    await harness.backend.producing.cancel(job_id)


async def _cancel_running(harness: Harness, worker: HandDrivenWorker, job_id: str) -> None:
    (delivery,) = await worker.take(1)
    assert delivery.lease.job_id == job_id
    await harness.backend.producing.cancel(job_id)
    await worker.settle(Retried(delivery.lease, 0.0, FAILURE))


async def _lose_workers(harness: Harness, worker: HandDrivenWorker, job_id: str) -> None:
    (delivery,) = await worker.take(1)
    assert delivery.lease.job_id == job_id
    assert (await harness.lose(worker, max_lost=1)).failed == [job_id]


FAILING_ENDS: dict[str, Callable[[Harness, HandDrivenWorker, str], Awaitable[None]]] = {
    "failed": _fail_attempt,
    "cancelled by its handler": _cancel_itself,
    "cancelled while it waits": _cancel_waiting,
    "cancelled while it runs": _cancel_running,
    "lost": _lose_workers,
}
"""The ways in which a job ends without success. No other job waits meanwhile."""
