"""Branches of a durable function: `asyncio.gather` and task groups."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nimburion import DurableContext, Processor, Signal, State
from nimburion.errors import NotOpen
from tests.waiting import wait_until

number = Signal("number", int)


@pytest.fixture(params=["memory", "sqlite"])
def processor(request: pytest.FixtureRequest, tmp_path: Path) -> Processor:
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}"
    return Processor(url, max_retries=0)


async def wait_for_state(processor: Processor, job_id: str, state: State) -> None:
    async def has_state() -> bool:
        return (await processor.get_status(job_id)).state is state

    await wait_until(has_state, f"it is {state.value}")


async def test_short_sleeps_side_by_side_end_one_after_the_other(processor: Processor) -> None:
    @processor.job
    async def run(ctx: DurableContext) -> str:
        await asyncio.gather(*(ctx.sleep(f"{n}", n / 50) for n in range(1, 4)))
        return "done"

    async with processor:
        await processor.start()
        assert await processor.wait(await run.enqueue(), timeout=20) == "done"


async def test_a_run_is_suspended_when_a_short_sleep_in_a_branch_is_over(
    processor: Processor,
) -> None:
    @processor.job
    async def run(ctx: DurableContext) -> object:
        results = await asyncio.gather(ctx.sleep("pause", 0.02), ctx.wait_for(number))
        return results[1]

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await wait_for_state(processor, job_id, State.SUSPENDED)
        await processor.signal(job_id, number, 5)
        assert await processor.wait(job_id, timeout=20) == 5


async def test_a_cancelled_run_ends_when_a_short_sleep_in_a_branch_is_over() -> None:
    processor = Processor("memory://", max_retries=0)
    sleeps, undone = asyncio.Event(), list[str]()

    async def work() -> None:
        sleeps.set()

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def work_on() -> None:
            await ctx.step(work)
            ctx.undo(undone.append, "work")
            await ctx.sleep("more", 1000)

        async with asyncio.TaskGroup() as group:
            group.create_task(work_on())
            group.create_task(ctx.sleep("pause", 0.2))

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await sleeps.wait()
        await processor.cancel(job_id)
        await wait_for_state(processor, job_id, State.CANCELLED)
        assert undone == ["work"]


@pytest.mark.parametrize("uses_group", [True, False])
async def test_an_operation_in_a_finally_block_does_not_keep_a_run_from_its_suspension(
    processor: Processor, *, uses_group: bool
) -> None:
    notes: list[str] = []

    async def note() -> None:
        notes.append("clean")

    @processor.job
    async def run(ctx: DurableContext) -> int:
        async def branch() -> int:
            try:
                return await ctx.wait_for(number)
            finally:
                await ctx.step(note)

        if not uses_group:
            return (await asyncio.gather(branch()))[0]
        async with asyncio.TaskGroup() as group:
            task = group.create_task(branch())
        return task.result()

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await wait_for_state(processor, job_id, State.SUSPENDED)
        assert notes == []
        await processor.signal(job_id, number, 5)
        assert await processor.wait(job_id, timeout=20) == 5
        assert notes == ["clean"]


async def test_an_operation_in_a_finally_block_does_not_keep_a_worker_from_its_end(
    processor: Processor,
) -> None:
    began, calls = asyncio.Event(), list[str]()

    async def work() -> None:
        calls.append("work")
        began.set()
        if len(calls) == 1:
            await asyncio.Event().wait()

    async def clean() -> None:
        calls.append("clean")

    @processor.job
    async def run(ctx: DurableContext) -> None:
        async def branch() -> None:
            try:
                await ctx.step(work)
            finally:
                await ctx.step(clean)

        async with asyncio.TaskGroup() as group:
            group.create_task(branch())

    async with processor:
        await processor.start()
        job_id = await run.enqueue()
        await began.wait()
        await processor.stop(0.0)
        assert calls == ["work"]
        await processor.start()
        await processor.wait(job_id, timeout=20)
        assert calls == ["work", "work", "clean"]


async def test_a_branch_does_not_go_on_when_the_handler_has_ended(processor: Processor) -> None:
    calls: list[str] = []
    works, is_undoing = asyncio.Event(), asyncio.Event()

    async def reserve() -> None:
        calls.append("reserve")

    async def charge() -> None:
        await works.wait()
        raise ValueError("declined")

    async def ship() -> None:
        works.set()
        try:
            await is_undoing.wait()
        finally:
            calls.append("ship ends")

    async def release() -> None:
        is_undoing.set()
        for _ in range(20):
            await asyncio.sleep(0)
        calls.append("release")

    @processor.job
    async def order(ctx: DurableContext) -> None:
        async def branch() -> None:
            try:
                await ctx.step(ship)
            finally:
                try:
                    ctx.undo(calls.append, "late undo")
                except NotOpen:
                    calls.append("refused")
            await ctx.step(calls.append, "late step")

        await ctx.step(reserve)
        ctx.undo(release)
        await asyncio.gather(ctx.step(charge), branch())

    async with processor:
        await processor.start()
        job_id = await order.enqueue()
        await wait_for_state(processor, job_id, State.FAILED)
        assert calls == ["reserve", "ship ends", "refused", "release"]


async def test_a_wait_beside_a_branch_whose_step_is_stored(processor: Processor) -> None:

    async def give_one() -> int:
        return 1

    @processor.job
    async def run(ctx: DurableContext) -> int:
        async with asyncio.TaskGroup() as group:
            branch = group.create_task(ctx.step(give_one))
            value = await ctx.wait_for(number)
            if value == 0:
                value = await ctx.options(key="again").wait_for(number)
        return value + branch.result()

    async with processor, asyncio.timeout(20):
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, number, 0)
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.SUSPENDED
        await processor.signal(job_id, number, 5)
        await processor.drain()
        assert (await processor.get_status(job_id)).result == 6
