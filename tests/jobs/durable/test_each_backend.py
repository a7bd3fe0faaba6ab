"""The same durable function on each backend."""

from __future__ import annotations

import asyncio
from pathlib import Path

from nimburion import DurableContext, Processor, Signal, State
from tests.servers.server_kinds import RunningPostgres, RunningRedis
from tests.waiting import wait_until

approved = Signal("approved", str)


async def check_order(url: str) -> None:
    """Run a durable function whose worker loses its session twice, then one that is undone."""
    processor = Processor(url, max_retries=0)
    calls: list[str] = []

    @processor.job
    async def double(value: int) -> int:
        return 2 * value

    async def reserve(worker_id: str) -> str:
        calls.append("reserve")
        if calls.count("reserve") == 1:
            await processor.backend.consuming.close_session(worker_id)
        return "r"

    def charge(cents: int) -> int:
        calls.append("charge")
        return cents

    async def release(reservation: str) -> None:
        calls.append(f"release {reservation}")

    @processor.job
    async def order(ctx: DurableContext, begins_anew: bool) -> list[object]:
        if begins_anew:
            await ctx.options(key="before").step(charge, 1)
            await ctx.restart(begins_anew=False)
        reservation = await ctx.step(reserve, ctx.worker_id)
        ctx.undo(release, reservation)
        paid, many = await asyncio.gather(
            ctx.step(charge, 700), ctx.run_all(double.job(n) for n in range(30))
        )
        one = await ctx.options(key="one").run(double.job(5))
        answer = await ctx.wait_for(approved)
        child = await ctx.options(key="child").start(double.job(4))
        is_child = await ctx.wait_any(approved, child, timeout=60) is child
        late = await ctx.options(key="late").wait_any(approved, timeout=0.1)
        return [reservation, paid, sum(many), one, answer, is_child, late]

    async with processor:
        await processor.start()
        job_id = await order.enqueue(begins_anew=True)
        await processor.signal(job_id, approved, "ann", id="a")
        await processor.signal(job_id, approved, "bob", id="a")
        result = await processor.wait(job_id, timeout=60)
        assert result == ["r", 700, 870, 10, "ann", True, None]
        assert calls == ["charge", "reserve", "reserve", "charge"]

        cancelled = await order.enqueue(begins_anew=False)

        async def is_suspended() -> bool:
            status = await processor.get_status(cancelled)
            return status.state is State.SUSPENDED and calls.count("charge") == 3

        await wait_until(is_suspended, "it waits")
        await processor.cancel(cancelled)

        async def is_cancelled() -> bool:
            return (await processor.get_status(cancelled)).state is State.CANCELLED

        await wait_until(is_cancelled, "it is cancelled")
        assert calls.count("release r") == 1


async def test_memory() -> None:
    await check_order("memory://")


async def test_sqlite(tmp_path: Path) -> None:
    await check_order(f"sqlite:///{tmp_path / 'jobs.db'}")


async def test_redis(redis_server: RunningRedis) -> None:
    await check_order(redis_server.url)


async def test_postgres(postgres_server: RunningPostgres) -> None:
    await check_order(postgres_server.url)
