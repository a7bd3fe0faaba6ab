"""What a worker holds beyond what it runs: only while jobs are short."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from contextlib import AsyncExitStack
from functools import partial

import msgspec
import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.backend import Capabilities
from nimburion.core.exchange import Reply, ReserveRequest
from nimburion.core.job import State
from nimburion.core.settlement import Settlement
from nimburion.jobs import Processor
from nimburion.jobs.handling.context import Context
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import wait_until


class Counting(OverridableBackend):
    """Counts the exchanges."""

    exchanges = 0

    async def exchange(
        self,
        session_id: str,
        number: int,
        settlements: Sequence[Settlement],
        request: ReserveRequest,
    ) -> Reply:
        self.exchanges += 1
        return await super().exchange(session_id, number, settlements, request)


async def test_what_is_held_goes_back_as_soon_as_jobs_turn_out_to_be_long() -> None:
    clock = FakeClock()
    backend = Counting(clock=clock)
    processor = Processor(backend, clock=clock, concurrency=2, session_ttl=1e6)
    began = 0
    proceed = asyncio.Semaphore(0)

    async def handle(_: Context, data: bytes) -> None:
        nonlocal began
        if data == b"long":
            began += 1
            await proceed.acquire()
            clock.advance(1.0)

    processor.register("job", handle)
    async with processor, asyncio.timeout(10), AsyncExitStack() as stack:
        stack.push_async_callback(processor.stop, 0)
        for _ in range(20):
            await processor.enqueue_raw("job", b"short")
        await processor.start()
        await wait_until(partial(has_completed, backend, 20), "the short jobs are completed")
        for _ in range(50):
            await processor.enqueue_raw("job", b"long")
        await wait_until(partial(holds_more_than, backend, 2), "jobs are prefetched")
        proceed.release()
        await wait_until(lambda: began >= 3, "the third job runs")
        before = backend.exchanges
        for _ in range(100):  # well under the quarter of a second after which a stall is noticed
            await asyncio.sleep(0)
        assert (await backend.reads.count_jobs())[State.PROCESSING] == 2
        assert backend.exchanges - before <= 2


async def has_completed(backend: MemoryBackend, count: int) -> bool:
    return (await backend.reads.count_jobs())[State.COMPLETED] >= count


async def holds_more_than(backend: MemoryBackend, count: int) -> bool:
    """Whether more jobs than these are leased."""
    return (await backend.reads.count_jobs())[State.PROCESSING] > count


class Elsewhere(MemoryBackend):
    """Says that another process does its work."""

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(super().capabilities, out_of_process=True)


@pytest.mark.parametrize("kind", [Elsewhere, MemoryBackend])
async def test_a_backend_in_another_process_gets_two_exchanges_of_prefetch(
    kind: type[MemoryBackend],
) -> None:
    clock = FakeClock()
    backend = kind(clock=clock)
    processor = Processor(backend, clock=clock, concurrency=10, session_ttl=1e6)
    most = 0

    async def handle(_: Context, data: bytes) -> None:
        nonlocal most
        most = max(most, processor.health().prefetched)

    processor.register("job", handle)
    async with processor, asyncio.timeout(30), AsyncExitStack() as stack:
        stack.push_async_callback(processor.stop, 0)
        for _ in range(3_000):
            await processor.enqueue_raw("job", b"{}")
        await processor.start()
        await wait_until(partial(has_completed, backend, 3_000), "all jobs are completed", 30)
    # The slots are free again when a reply arrives, where a job can end before the next one starts.
    assert 400 < most < 1_000 + 10
    assert (most >= 500 + 10) is (kind is Elsewhere)


@pytest.mark.parametrize("kind", [Elsewhere, MemoryBackend])
async def test_workers_that_have_run_short_jobs_share_longer_ones(
    kind: type[MemoryBackend],
) -> None:
    """Each could prefetch hundreds of them, and so the first workers all."""
    workers, jobs = 8, 2_000
    clock = FakeClock()
    backend = kind(clock=clock)
    counts = [0] * workers

    async with AsyncExitStack() as stack, asyncio.timeout(60):
        client = await stack.enter_async_context(Processor(backend, clock=clock, session_ttl=1e6))
        client.register("job", _ignore)
        for number in range(workers):
            processor = Processor(
                backend.new_handle(), clock=clock, concurrency=10, session_ttl=1e6
            )

            async def handle(_: Context, data: bytes, number: int = number) -> None:
                if data == b"long":
                    clock.advance(0.001)
                    counts[number] += 1

            processor.register("job", handle)
            await stack.enter_async_context(processor)
            stack.push_async_callback(processor.stop, 0)
            await processor.start()
        clock.advance(0.25e6)  # the next heartbeat of each says how many there are
        for _ in range(50 * workers):
            await client.enqueue_raw("job", b"short")
        await wait_until(partial(has_completed, backend, 50 * workers), "short jobs are completed")
        await client.queues.pause("default")
        for _ in range(jobs):
            await client.enqueue_raw("job", b"long")
        await client.queues.resume("default")
        done = 50 * workers + jobs
        await wait_until(partial(has_completed, backend, done), "all jobs are completed", 30)
    assert statistics.pstdev(counts) / statistics.mean(counts) <= 0.1


async def _ignore(_: Context, data: bytes) -> None:
    del data
