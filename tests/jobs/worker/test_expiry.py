"""Jobs that are cancelled because they did not start in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import RateLimitExceeded
from nimburion.core.job import State
from nimburion.core.session import Session
from nimburion.core.settlement import Released
from nimburion.jobs import Limit, Processor, job
from nimburion.scheduler import Scheduler
from nimburion.testing import FakeClock
from nimburion.testing.contract.harness import HandDrivenWorker
from tests.waiting import DEADLINE, wait_until_finished

ran: list[object] = []


@job(expires="1h")
async def remind(address: str) -> None:
    ran.append(address)


@job(expires=60, max_retries=1, retry_backoff=600)
async def fail() -> None:
    ran.append("failed")
    raise ConnectionError


@job(expires=5, limits=[Limit(rate="10/s", burst=10, cost=5)])
async def call(number: int) -> None:
    ran.append(number)


@pytest.fixture
def clock() -> FakeClock:
    ran.clear()
    return FakeClock()


@pytest.fixture
async def processor(clock: FakeClock) -> AsyncIterator[Processor]:
    async with Processor(MemoryBackend(clock=clock), clock=clock) as processor:
        processor.register(remind, fail, call)
        yield processor


async def test_a_job_that_has_not_started_in_time_is_cancelled(
    processor: Processor, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "nimburion.worker")
    late = await processor.enqueue(remind.job("late"))
    clock.advance(1.0)
    early = await processor.enqueue(remind.job("early"))
    clock.advance(3600)
    assert await processor.drain() == 2
    status = await processor.get_status(late)
    assert (status.state, status.reason) == (State.CANCELLED, "expired")
    assert (await processor.get_status(early)).state is State.COMPLETED
    assert ran == ["early"]
    assert f"remind {late} expired: it was due 3601.0 s ago; it is cancelled" in caplog.text
    (counted,) = [each for each in processor.metrics.collect() if each.name == "jobs_processed"]
    outcomes = {each.labels.values["outcome"]: each.value for each in counted.samples if each.value}
    assert outcomes == {"cancelled": 1, "completed": 1}


async def test_the_time_counts_from_when_the_job_is_due(
    processor: Processor, clock: FakeClock
) -> None:
    await processor.enqueue(remind.job("later"), after="2h")
    clock.advance(7200)
    await processor.drain()
    assert ran == ["later"]


async def test_a_call_takes_precedence(processor: Processor, clock: FakeClock) -> None:
    short = await processor.enqueue(remind.job("a"), expires=timedelta(minutes=1))
    await processor.enqueue(remind.job("b"), expires="1d")
    clock.advance(3700)
    await processor.drain()
    assert ran == ["b"]
    assert (await processor.get_status(short)).reason == "expired"


async def test_a_job_that_has_started_in_time_is_retried(
    processor: Processor, clock: FakeClock
) -> None:
    await processor.enqueue(fail.job())
    await processor.drain()
    clock.advance(10_000)
    await processor.drain()
    assert ran == ["failed", "failed"]


async def test_a_job_that_a_stop_interrupted_is_not_expired(
    processor: Processor, clock: FakeClock
) -> None:
    began = asyncio.Event()

    @processor.job(expires=60)
    async def build() -> None:
        ran.append("began")
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()

    job_id = await build.enqueue()
    async with asyncio.timeout(DEADLINE):
        running = asyncio.create_task(processor.run(signals=False))
        await began.wait()
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    status = await processor.get_status(job_id)
    assert (status.state, status.failures, status.lost) == (State.PENDING, 0, 0)
    clock.advance(61)
    await processor.drain()
    assert (await processor.get_status(job_id)).state is State.COMPLETED
    assert ran == ["began", "began"]


@pytest.mark.parametrize("limits", [[], [Limit(rate="10/s")]])
async def test_a_job_that_a_service_refused_is_not_expired(
    processor: Processor, clock: FakeClock, limits: list[Limit]
) -> None:
    @processor.job(expires=60, limits=limits)
    async def ask() -> None:
        ran.append("asked")
        if len(ran) == 1:
            raise RateLimitExceeded(5)

    await ask.enqueue()
    await processor.drain()
    clock.advance(5 + 61)
    await processor.drain()
    assert ran == ["asked", "asked"]


async def test_only_the_first_lease_of_a_job_expires(
    processor: Processor, clock: FakeClock
) -> None:
    """A returned job does not tell whether its handler was called, so it runs."""
    await processor.enqueue(remind.job("returned"))
    session = Session(id="0" * 32, queues=("default",), names=("remind",))
    worker = HandDrivenWorker(processor.backend, session)
    await worker.open()
    delivery = await worker.take_one()
    await worker.settle(Released(delivery.lease, unstarted=True))
    clock.advance(3601)
    await processor.drain()
    assert ran == ["returned"]


async def test_expired_jobs_give_back_the_units_of_their_rate(
    processor: Processor, clock: FakeClock
) -> None:
    await processor.enqueue_many(call.job(number) for number in range(20))
    clock.advance(10)
    began = clock.now()
    await processor.enqueue_many(call.job(number) for number in (100, 101))
    await processor.drain(advance=True)
    assert (ran, clock.now() - began <= 2.0) == ([100, 101], True)


async def test_a_worker_calls_no_batch_handler_with_expired_jobs(tmp_path: Path) -> None:
    processor = Processor(f"sqlite:///{tmp_path}/jobs.db")
    calls: list[list[int]] = []

    @processor.job(batch=10)
    async def index(numbers: list[int]) -> None:
        calls.append(numbers)

    async with processor:
        await processor.start()
        hour_ago = datetime.now(UTC) - timedelta(hours=1)
        old = await index.options(at=hour_ago, expires=60).enqueue(1)
        new = await index.options(at=hour_ago).enqueue(2)
        ended = [await wait_until_finished(processor, job_id) for job_id in (old, new)]
    assert [(job.state, job.reason) for job in ended] == [
        (State.CANCELLED, "expired"),
        (State.COMPLETED, None),
    ]
    assert calls == [[2]]


async def test_a_tick_that_is_fired_late_makes_a_job_that_expires(
    processor: Processor, clock: FakeClock
) -> None:
    scheduler = Scheduler(processor, in_workers=False)
    scheduler.schedule("@every 1d", remind.job("daily"), name="daily", expires="10m")
    await scheduler.fire_due()
    clock.advance(86_400)
    await scheduler.fire_due()
    clock.advance(700)
    await processor.drain()
    assert ran == []
