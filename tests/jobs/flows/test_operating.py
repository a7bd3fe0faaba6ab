"""`processor.flows`: list, show, wait for, cancel and replay flows."""

from __future__ import annotations

import asyncio

import pytest

from nimburion import Flow, Operator, Processor, State
from nimburion.core.errors import FlowNotFound, InvalidJob, MissingRight, WaitTimeout
from nimburion.core.flows import FlowState
from tests.jobs.flows.flow_jobs import add_up, count_rows, fetch, make_processor, note


def make_import(processor: Processor, broken: list[int]) -> Flow:
    """Return a flow of ten parts. Those whose number is in `broken` fail."""

    @processor.job(name="part")
    async def count_part(part: int) -> int:
        if part in broken:
            raise ValueError(f"part {part}")
        return part

    flow = Flow("import", on_failure=note.job("failed"), on_success=note.job("done"))
    parts = flow.add_all((count_part.job(n) for n in range(10)), name="parts", max_failed=1)
    flow.add(add_up.job(parts.results))
    return flow


async def read_states(processor: Processor, *names: str) -> list[State]:
    return [(await processor.get_status(name)).state for name in names]


async def test_a_flow_with_its_groups() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(processor, [3, 4]), id="i")
        flow = await processor.flows.get("i")
        assert (flow.state, flow.members, flow.unfinished) == (FlowState.RUNNING, 2, 2)
        await processor.drain()
        flow = await processor.flows.get("i")
        assert (flow.state, flow.failed, flow.cancelled) == (FlowState.FAILED, 1, 1)
        (group,) = flow.groups
        assert (group.id, group.state) == ("i.parts", FlowState.FAILED)
        assert (group.completed, group.failed, group.max_failed) == (8, 2, 1)
        with pytest.raises(FlowNotFound, match="no flow 'other'"):
            await processor.flows.get("other")
        with pytest.raises(InvalidJob, match="flow id"):
            await processor.flows.get("not an id")


async def test_the_list_of_flows() -> None:
    async with make_processor() as processor:
        for number in range(3):
            flow = Flow("one")
            flow.add(fetch.job("a"))
            await processor.enqueue_flow(flow, id=f"f{number}")
        await processor.process_one()
        assert [flow.id async for flow in processor.flows.list()] == ["f2", "f1", "f0"]
        assert [flow.id async for flow in processor.flows.list(running=True)] == ["f2", "f1"]


async def test_wait_for_a_flow() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(processor, []), id="i")
        with pytest.raises(WaitTimeout, match="2 of 2 members have not ended"):
            await processor.flows.wait("i", timeout=0)
        waiting = asyncio.ensure_future(processor.flows.wait("i", timeout=60))
        await processor.drain()
        assert (await waiting).state is FlowState.COMPLETED


async def test_cancel_a_flow() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(processor, []), id="i")
        for _ in range(3):
            await processor.process_one()
        changed = await processor.flows.cancel("i")
        assert {*changed} <= {*(f"i.parts.{n}" for n in range(3, 10)), "i.add_up"}
        flow = await processor.flows.get("i")
        assert (flow.state, flow.groups[0].completed) == (FlowState.CANCELLED, 3)
        assert await processor.flows.cancel("i") == []
        await processor.drain()
        states = await read_states(processor, "i.on_failure", "i.on_success", "i.parts.9")
        assert states == [State.COMPLETED, State.CANCELLED, State.CANCELLED]
        actions = [record.action async for record in processor.audit.list()]
        assert actions == ["flows.cancel", "flows.cancel"]


async def test_replay_the_failed_part() -> None:
    broken = [3, 4]
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(processor, broken), id="i")
        await processor.drain()
        preview = await processor.flows.preview_replay("i")
        assert (preview.failed.count, preview.cancelled.count) == (2, 1)
        assert {job.id for job in preview.failed.first} == {"i.parts.3", "i.parts.4"}
        broken.clear()
        assert {*await processor.flows.replay("i")} == {"i.parts.3", "i.parts.4"}
        assert await processor.drain() >= 3
        assert await processor.wait("i.add_up") == sum(range(10))
        assert (await processor.flows.get("i")).state is FlowState.COMPLETED
        assert await processor.flows.replay("i") == []


async def test_actions_need_a_right() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(processor, []), id="i")
        processor.operator = Operator("ann", rights=frozenset({"read"}))
        for action in (processor.flows.cancel, processor.flows.replay):
            with pytest.raises(MissingRight):
                await action("i")
        assert (await processor.flows.get("i")).unfinished == 2


async def test_bulk_operations_take_a_flow() -> None:
    async with make_processor() as processor:
        await processor.enqueue_flow(make_import(processor, [3, 4]), id="i")
        await processor.enqueue(count_rows.job("a", 1))
        await processor.drain()
        preview = await processor.bulk.preview("replay", flow="i")
        assert preview.count == 2
        assert (await processor.bulk.preview("replay", flow="j")).count == 0


def test_from_code_that_is_not_async() -> None:
    processor = make_processor()
    processor.sync.enqueue_flow(make_import(processor, []), id="i")
    assert processor.sync.flows.get("i").unfinished == 2
    processor.sync.drain()
    assert processor.sync.flows.wait("i", 10).state is FlowState.COMPLETED
    assert [flow.id for flow in processor.sync.flows.list()] == ["i"]
    assert processor.sync.flows.replay("i") == []
    assert processor.sync.flows.preview_replay("i").failed.count == 0
    assert processor.sync.flows.cancel("i") == []
    processor.sync.close()
