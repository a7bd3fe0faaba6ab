"""A blocked event loop: what has not begun is released, and runs once, here or elsewhere."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.job import State
from nimburion.core.settings import QueueSettings
from nimburion.core.settlement import Settlement
from nimburion.jobs import Processor
from nimburion.jobs.handling.context import Context
from tests.overridden import OverridableBackend

DEADLINE = 20.0


class SlowReply(OverridableBackend):
    """Holds back the reply of the exchange that hands out the job `late`, the first time."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = asyncio.Event()
        self.answered = asyncio.Event()

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        reply = await super().exchange(session_id, number, settlements, request)
        if any(one.lease.job_id == "late" for one in reply.deliveries):
            self.under_way.set()
            await self.answered.wait()
        return reply


def block_until(backend: MemoryBackend, holds: Callable[[dict[str, State]], bool]) -> None:
    """Block this thread until it holds of the states of all jobs."""
    handle = backend.new_handle()
    never = threading.Event()

    def wait() -> None:
        while True:
            page = asyncio.run(handle.reads.list_jobs())
            if holds({job.id: job.state for job in page.jobs}):
                return
            never.wait(0.01)

    with ThreadPoolExecutor(1) as pool:
        pool.submit(wait).result(DEADLINE)


async def test_jobs_of_a_reply_that_the_blocked_loop_has_not_read_run_once() -> None:
    backend = SlowReply()
    processor = Processor(backend, loop_lag_limit=0.2)
    fences: list[int] = []

    async def blocking(ctx: Context, _: bytes) -> None:
        await processor.enqueue_raw("late", b"{}", id="late")
        await backend.under_way.wait()
        block_until(backend, lambda states: states["late"] is State.PENDING)
        backend.answered.set()

    async def late(ctx: Context, _: bytes) -> None:
        fences.append(ctx.fence)

    processor.register("blocking", blocking)
    processor.register("late", late)
    async with processor, asyncio.timeout(2 * DEADLINE):
        await processor.enqueue_raw("blocking", b"{}", id="blocking")
        await processor.start()
        await processor.wait("blocking")
        await processor.wait("late")
    assert fences == [2]


async def test_jobs_that_have_not_begun_are_released_and_counted_nowhere(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "nimburion.worker")
    processor = Processor(
        MemoryBackend(),
        loop_lag_limit=0.2,
        concurrency=4,
        queues=(QueueSettings("default", concurrency=4),),
    )
    ran: list[str] = []
    states: list[str] = []

    async def blocking(ctx: Context, _: bytes) -> None:
        ran.append(ctx.job_id)
        block_until(
            processor.backend,  # type: ignore[arg-type]
            lambda found: list(found.values()).count(State.PROCESSING) == 1,
        )
        states.append(processor.health().state)

    async def quick(ctx: Context, _: bytes) -> None:
        ran.append(ctx.job_id)

    processor.register("blocking", blocking)
    processor.register("quick", quick)
    async with processor, asyncio.timeout(2 * DEADLINE):
        await processor.enqueue_raw("blocking", b"{}", id="blocking")
        for n in range(8):
            await processor.enqueue_raw("quick", b"{}", id=f"quick-{n}")
        await processor.start()
        for n in range(8):
            await processor.wait(f"quick-{n}")
        counts = await processor.backend.reads.count_jobs()
    assert counts[State.COMPLETED] == 9
    assert sorted(ran) == ["blocking", *(f"quick-{n}" for n in range(8))]
    assert states == ["degraded"]
    messages = [record.getMessage() for record in caplog.records]
    assert any("blocked by job blocking (blocking)" in one and "3 jobs" in one for one in messages)
    assert any("the event loop runs again" in one for one in messages)
    assert any("block_until" in (record.stack_info or "") for record in caplog.records)
