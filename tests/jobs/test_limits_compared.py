"""Cases of `docs/explanation/limits-compared.md` that no other test shows from end to end."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.rates import find_excess
from nimburion.backends.memory import MemoryBackend
from nimburion.jobs import Limit, Processor
from nimburion.testing.clock import FakeClock
from nimburion.testing.contract.harness import list_uses
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize(("quiet", "burst"), [(0.0, 20), (59.9, 20), (1_000.0, 20), (59.9, 1)])
async def test_no_minute_has_more_than_the_rate_and_one_burst(quiet: float, burst: int) -> None:
    """Jobs come after a quiet time, just before a minute ends: the next minute brings no second
    burst."""
    clock = FakeClock()
    processor = Processor(MemoryBackend(clock=clock), clock=clock)
    starts: list[float] = []

    @processor.job(limits=[Limit(rate="100/min", burst=burst)])
    async def call() -> None:
        starts.append(clock.now())

    async with processor:
        await call.enqueue()
        await processor.drain()
        clock.advance(quiet)
        await processor.enqueue_many(call.job() for _ in range(300))
        await processor.drain(advance=True)
    assert len(starts) == 301
    assert find_excess(starts, 100 / 60) <= burst + 1e-3
    assert starts[-1] - starts[1] <= (300 - burst + 1) * 0.6 + 1e-3


async def test_an_exceeded_rate_is_seen() -> None:
    """A window that is counted from its border: twice the rate around it."""
    windows = [0.9] * 10 + [1.0] * 10
    assert find_excess(windows, 10) == pytest.approx(19.0)
    assert find_excess([n / 10 for n in range(50)], 10) == pytest.approx(1.0)


async def test_a_key_with_a_long_queue_does_not_delay_another() -> None:
    """3,000 jobs of a customer whose only place is taken wait before the job of another."""
    processor = Processor(MemoryBackend(), concurrency=4)
    ended = asyncio.Event()
    ran: list[str] = []

    @processor.job(limits=[Limit(1, key="customer")])
    async def sync(customer: str) -> None:
        ran.append(customer)
        if customer == "a":
            await ended.wait()

    async with processor:
        await processor.enqueue_many(sync.job("a") for _ in range(3_000))
        await sync.enqueue("b")
        await processor.start()
        await wait_until(lambda: "b" in ran, "the job of the other customer runs")
        ended.set()
    assert ran[:2] == ["a", "b"]


async def test_a_thousand_keys_leave_nothing_behind() -> None:
    processor = Processor(MemoryBackend(), concurrency=20)
    ran: list[str] = []

    @processor.job(limits=[Limit(1, key="customer")])
    async def sync(customer: str) -> None:
        ran.append(customer)
        await asyncio.sleep(0)

    async def is_idle() -> bool:
        counts = await processor.backend.reads.count_jobs()
        return all(state.finished for state, count in counts.items() if count)

    async with processor:
        await processor.enqueue_many(sync.job(f"c{n % 1_000}") for n in range(2_000))
        await processor.start()
        await wait_until(lambda: len(ran) == 2_000, "all jobs run")
        await wait_until(is_idle, "the last jobs are settled")
        assert await list_uses(processor.backend) == []
    assert len(set(ran)) == 1_000
