"""`Flow(fail_fast=True)`: the first failure cancels what has not started."""

from __future__ import annotations

import pytest

from nimburion import Context, Flow, Processor, State
from nimburion.backends.memory import MemoryBackend
from nimburion.core.flows import FlowState
from nimburion.testing import FakeClock
from tests.jobs.flows.flow_jobs import count_rows, fail, fetch, make_processor, note


@pytest.mark.parametrize("fail_fast", [False, True])
async def test_the_first_failure_cancels_the_others(fail_fast: bool) -> None:
    async with make_processor() as processor:
        flow = Flow("import", fail_fast=fail_fast, on_finished=note.job("done"))
        flow.add(fail.job(1))
        parts = flow.add_all([count_rows.job("f", n) for n in range(3)], name="parts")
        flow.add(note.job("always"), name="last", depends_on=parts, on="finished")
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        tree = await processor.flows.get("i")
        assert tree.state is FlowState.FAILED
        completed, cancelled = (0, 2) if fail_fast else (2, 0)
        assert (tree.completed, tree.failed, tree.cancelled) == (completed, 1, cancelled)
        assert (await processor.get_status("i.on_finished")).state is State.COMPLETED


async def test_an_added_member_of_a_failed_flow_is_cancelled() -> None:
    async with make_processor() as processor:
        flow = Flow("import", fail_fast=True, open=True)
        flow.add(fail.job(1))
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        (late,) = await processor.flows.add("i", fetch.job("f.csv"))
        await processor.drain()
        assert (await processor.get_status(late)).state is State.CANCELLED
        await processor.flows.close("i")
        assert (await processor.flows.wait("i", 10)).state is FlowState.FAILED


async def test_a_replay_runs_all_of_it() -> None:
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock, max_retries=0)
    attempts: list[str] = []

    @processor.job
    async def fail_once(ctx: Context) -> None:
        attempts.append(ctx.job_id)
        if len(attempts) == 1:
            raise ValueError("once")

    processor.register(fetch)
    flow = Flow("import", fail_fast=True)
    flow.add(fail_once.job())
    flow.add_all([fetch.job(f"{n}.csv") for n in range(3)], name="files")
    async with processor:
        await processor.enqueue_flow(flow, id="i")
        await processor.drain()
        assert (await processor.flows.get("i")).state is FlowState.FAILED
        assert await processor.flows.replay("i") == ["i.fail_once"]
        await processor.drain()
        tree = await processor.flows.get("i")
        assert (tree.state, tree.completed) == (FlowState.COMPLETED, 2)
