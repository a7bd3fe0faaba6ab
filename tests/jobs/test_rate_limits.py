"""Rate limits from a declaration to the handler: starts on time, refusals, corrected costs."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import RateLimitExceeded
from nimburion.core.events import AttemptEnded
from nimburion.core.job import State
from nimburion.jobs import Limit, Processor
from nimburion.jobs.handling.context import Context
from nimburion.testing.clock import FakeClock
from tests.waiting import wait_until

pytestmark = pytest.mark.asyncio


def make_processor() -> tuple[Processor, FakeClock]:
    clock = FakeClock()
    return Processor(MemoryBackend(clock=clock), clock=clock), clock


async def test_a_drain_starts_each_job_when_its_rate_allows() -> None:
    processor, clock = make_processor()
    began, starts = clock.now(), []

    @processor.job(limits=[Limit(rate="30/min", burst=2)])
    async def call(n: int) -> None:
        starts.append((n, round(clock.now() - began, 3)))

    async with processor:
        for n in range(5):
            await call.enqueue(n)
        assert await processor.drain() == 2
        assert await processor.drain(advance=True) == 3
    assert starts == [(0, 0.0), (1, 0.0), (2, 2.0), (3, 4.0), (4, 6.0)]


async def test_a_refused_call_stops_its_name_and_counts_nothing() -> None:
    processor, clock = make_processor()
    began, starts, ended = clock.now(), [], []
    refuse = True

    @processor.job(limits=[Limit(rate="60/min", burst=5)])
    async def call(ctx: Context, n: int) -> None:
        nonlocal refuse
        starts.append((n, round(clock.now() - began, 3)))
        if refuse:
            refuse = False
            ctx.rate_limited(timedelta(seconds=30))

    @processor.job
    async def other() -> None:
        starts.append((-1, round(clock.now() - began, 3)))

    processor.events.subscribe(
        lambda event: ended.append(event.outcome),  # type: ignore[attr-defined]
        kinds=(AttemptEnded,),
    )
    async with processor:
        refused = await call.enqueue(0)
        await call.enqueue(1)
        await other.enqueue()
        await processor.drain()
        status = await processor.get_status(refused)
        assert (status.state, status.failures, status.attempt) == (State.PENDING, 0, 1)
        await processor.drain(advance=True)
    assert starts == [(0, 0.0), (-1, 0.0), (0, 30.0), (1, 31.0)]
    assert ended == ["released", "completed", "completed", "completed"]


async def test_a_cost_that_is_known_later_delays_the_next_job() -> None:
    processor, clock = make_processor()
    began, starts = clock.now(), []

    @processor.job(limits=[Limit(rate="10/s", burst=10, cost=10)])
    def ask(ctx: Context, tokens: int) -> None:
        starts.append(round(clock.now() - began, 3))
        ctx.spend(tokens - 10)

    async with processor:
        await ask.enqueue(30)
        await ask.enqueue(5)
        await ask.enqueue(10)
        await processor.drain(advance=True)
    assert starts == [0.0, 3.0, 3.5]


async def test_spend_takes_whole_numbers_only() -> None:
    processor, _ = make_processor()
    errors: list[str] = []

    @processor.job(rate="1/s")
    def ask(ctx: Context) -> None:
        for units in (1.5, 1_000_001, -1_000_001):
            with pytest.raises(ValueError, match="spend takes a whole number") as raised:
                ctx.spend(units)  # type: ignore[arg-type]
            errors.append(str(raised.value))
        ctx.spend(0)

    async with processor:
        await ask.enqueue()
        await processor.drain()
    assert errors[0] == "spend takes a whole number of units, at most 1,000,000, not 1.5"


async def test_a_raised_signal_without_a_duration_is_a_failure() -> None:
    class Broken(RateLimitExceeded):
        def __init__(self) -> None:
            Exception.__init__(self, "no base")

    processor, _ = make_processor()

    @processor.job(rate="1/s", max_retries=0)
    async def call() -> None:
        raise Broken

    async with processor:
        job_id = await call.enqueue()
        await processor.drain()
        status = await processor.get_status(job_id)
    assert status.error is not None
    assert "no valid `retry_after`" in status.error.message


async def test_a_worker_sleeps_until_the_next_job_may_start() -> None:
    """In real time: 20 jobs at 100 a second with a burst of 1 take the 19 intervals between them,
    and each exchange but a few brings a job."""
    backend = MemoryBackend()
    exchanges = 0
    exchange = backend.consuming.exchange

    async def count(*arguments: object) -> object:
        nonlocal exchanges
        exchanges += 1
        return await exchange(*arguments)  # type: ignore[arg-type]

    backend.consuming.exchange = count  # type: ignore[method-assign, assignment]
    processor = Processor(backend)
    loop = asyncio.get_running_loop()
    starts: list[float] = []

    @processor.job(limits=[Limit(rate="100/s", burst=1)])
    async def call() -> None:
        starts.append(loop.time())

    async with processor:
        await processor.enqueue_many(call.job() for _ in range(20))
        await processor.start()
        await wait_until(lambda: len(starts) == 20, "all jobs start")
    assert starts[-1] - starts[0] >= 0.189
    assert exchanges < 80


async def test_a_prefetched_job_that_is_released_gives_its_units_back() -> None:
    """A stopping worker releases what it has not started: the backend then has the units again."""
    clock = FakeClock()  # attempts take no time, so the worker prefetches
    backend = MemoryBackend(clock=clock)
    processor = Processor(backend, concurrency=1, grace=0.0, clock=clock)

    @processor.job(limits=[Limit(rate="8/h", burst=8)])
    async def call(n: int) -> None:
        if n:
            await asyncio.Event().wait()

    async def is_completed() -> bool:
        return (await backend.reads.count_jobs())[State.COMPLETED] == 1

    async def is_prefetched() -> bool:
        return (await backend.reads.count_jobs())[State.PROCESSING] == 4

    async with processor:
        await processor.start()
        await call.enqueue(0)
        await wait_until(is_completed, "the first job ends at once")
        await processor.enqueue_many(call.job(n) for n in (1, 2, 3, 4))
        await wait_until(is_prefetched, "one job runs, and three are prefetched")
        await processor.stop()
        (rate,) = await backend.reads.list_limits()
    assert rate.room == 8 - 2
