"""What comes while a run works: signals after its lease, caught errors, waits of branches."""

from __future__ import annotations

import asyncio
from typing import Any

from nimburion import DurableContext, Processor, Signal, State
from nimburion.core.exchange import Reply
from nimburion.core.settlement import Recorded
from nimburion.testing import FakeClock
from tests.jobs.durable.runs import finish, make_processor
from tests.overridden import OverridableBackend

DEADLINE = 10.0

number = Signal("number", int)
other = Signal("other", int)


async def give_one() -> int:
    return 1


async def test_a_wait_beside_a_branch_whose_step_is_stored() -> None:
    processor = make_processor()

    @processor.job
    async def run(ctx: DurableContext) -> int:
        async with asyncio.TaskGroup() as group:
            branch = group.create_task(ctx.step(give_one))
            value = await ctx.wait_for(number)
            if value == 0:
                value = await ctx.options(key="again").wait_for(number)
        return value + branch.result()

    async with processor, asyncio.timeout(DEADLINE):
        job_id = await run.enqueue()
        await processor.drain()
        await processor.signal(job_id, number, 0)
        await processor.drain()
        assert (await processor.get_status(job_id)).state is State.SUSPENDED
        await processor.signal(job_id, number, 5)
        assert (await finish(processor, job_id)).result == 6


async def test_a_step_after_one_whose_wait_for_the_backend_was_cancelled() -> None:
    answers = asyncio.Event()

    class Slow(OverridableBackend):
        """It answers steps when the handler has lost its patience."""

        async def exchange(self, *arguments: Any) -> Reply:
            if any(isinstance(one, Recorded) for one in arguments[2]):
                await answers.wait()
            return await super().exchange(*arguments)

    processor = Processor(Slow(), max_retries=0)

    @processor.job
    async def run(ctx: DurableContext) -> int:
        ctx.undo(give_one)
        try:
            async with asyncio.timeout(0.001):
                await ctx.options(key="late").step(give_one)
        except TimeoutError:
            answers.set()
        return await ctx.step(give_one)

    async with processor, asyncio.timeout(DEADLINE):
        await processor.start()
        assert await processor.wait(await run.enqueue()) == 1


async def test_a_caught_error_is_stored_before_the_next_step_is_called() -> None:
    processor = make_processor()
    stored: list[int] = []

    async def fail() -> None:
        raise ValueError("declined")

    async def count(job_id: str) -> None:
        stored.append(len((await processor.backend.reads.read_run(job_id)).steps))

    @processor.job
    async def run(ctx: DurableContext) -> None:
        try:
            await ctx.step(fail)
        except ValueError:
            await ctx.step(count, ctx.job_id)

    async with processor:
        await finish(processor, await run.enqueue())
    assert stored == [1]


async def test_a_signal_that_came_after_the_lease_and_before_the_timeout() -> None:
    clock = FakeClock()
    late: list[str] = []

    class Late(OverridableBackend):
        """The reply with the lease of the run arrives late."""

        async def exchange(self, *arguments: Any) -> Reply:
            reply = await super().exchange(*arguments)
            if late and reply.deliveries:
                await processor.signal(late.pop(), number, 7)
                clock.advance(60)
            return reply

    processor = Processor(Late(clock=clock), clock=clock)

    @processor.job
    async def run(ctx: DurableContext) -> list[int | None]:
        first, second = await asyncio.gather(ctx.wait_for(number, timeout=30), ctx.wait_for(other))
        return [first, second]

    async with processor, asyncio.timeout(DEADLINE):
        job_id = await run.enqueue()
        await processor.drain()
        late.append(job_id)
        await processor.signal(job_id, other, 1)
        assert (await finish(processor, job_id)).result == [7, 1]


async def test_a_signal_that_came_before_the_child_ended() -> None:
    processor = Processor("memory://")
    may_end = asyncio.Event()

    @processor.job
    async def child() -> None:
        await may_end.wait()

    @processor.job
    async def run(ctx: DurableContext) -> str:
        started = await ctx.start(child.job())

        async def signal_and_end_the_child() -> None:
            await processor.signal(ctx.job_id, number, 1)
            may_end.set()
            await processor.wait(started.id)

        await ctx.step(signal_and_end_the_child)
        return "child" if await ctx.wait_any(started, number) is started else "signal"

    async with processor, asyncio.timeout(DEADLINE):
        await processor.start()
        assert await processor.wait(await run.enqueue()) == "signal"
