"""Open runs continue with a later version of the code."""

from __future__ import annotations

import pytest

from nimburion import DurableContext, Processor, Signal, State
from nimburion.backends.memory import MemoryBackend
from nimburion.errors import NothingRegistered
from nimburion.testing import FakeClock
from tests.jobs.durable.runs import finish, make_processor

go_on = Signal("go on", int)


async def test_a_later_version_of_the_code_continues_an_open_run() -> None:
    """A step was renamed and keeps its key, one was removed, and two are new."""
    processor = make_processor()
    called: list[str] = []
    is_new_code = False

    async def charge(cents: int) -> int:
        called.append("charge")
        return cents

    async def charge_card(cents: int) -> int:
        called.append("charge_card")
        return -cents

    async def count() -> None:
        called.append("count")

    async def check() -> None:
        called.append("check")

    async def ship(cents: int) -> str:
        called.append("ship")
        return f"paid {cents}"

    @processor.job
    async def order(ctx: DurableContext) -> str:
        if is_new_code:
            await ctx.step(check)
            cents = await ctx.options(key="charge").step(charge_card, 5)
        else:
            cents = await ctx.step(charge, 5)
            await ctx.step(count)
        await ctx.wait_for(go_on)
        return await ctx.step(ship, cents)

    async with processor:
        job_id = await order.enqueue()
        await processor.drain()
        is_new_code = True
        await processor.signal(job_id, go_on, 1)
        assert (await finish(processor, job_id)).result == "paid 5"
        assert called == ["charge", "count", "check", "ship"]


async def test_a_run_waits_for_a_worker_that_knows_its_name_and_counts_nothing() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    known = Processor(backend, clock=clock, max_retries=0, max_lost=1)
    other = Processor(backend.new_handle(), clock=clock)

    @known.job
    async def order(ctx: DurableContext) -> int:
        for number in range(5):
            await ctx.options(key=f"{number}").wait_for(go_on)
        return ctx.attempt

    @other.job
    async def another() -> None: ...

    async with known, other:
        job_id = await order.enqueue()
        for number in range(5):
            await known.drain()
            assert (await known.get_status(job_id)).state is State.SUSPENDED
            await known.signal(job_id, go_on, number)
            with pytest.raises(NothingRegistered, match="order"):
                await other.drain()
            assert (await known.get_status(job_id)).state is State.PENDING
        assert (await finish(known, job_id)).result == 1
        record = await backend.reads.get_job(job_id)
        assert (record.failures, record.lost) == (0, 0)
