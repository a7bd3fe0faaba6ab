"""A worker that stops by itself: when nothing is due, or after a number of jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nimburion.core.errors import ConfigurationError, DefinitionError, Retry
from nimburion.core.job import State
from nimburion.core.limits import MAX_PARKED
from nimburion.core.settings import QueueLimitSettings
from nimburion.jobs import Limit, Processor
from tests.waiting import DEADLINE, wait_until


def make_processor(url: str, **settings: int) -> tuple[Processor, list[int]]:
    """Return a processor, and the numbers that its handler gets."""
    processor = Processor(url, concurrency=settings.get("concurrency", 10))
    numbers: list[int] = []

    @processor.job(name="note")
    async def note(number: int, more: int = 0) -> None:
        numbers.append(number)
        for added in range(more):
            await processor.enqueue(note.job(100 + added))

    @processor.job(name="fail", retry_backoff=3600.0)
    async def fail() -> None:
        raise Retry(after=3600.0)

    return processor, numbers


async def enqueue_notes(processor: Processor, count: int) -> None:
    for number in range(count):
        await processor.enqueue_raw("note", f'{{"number":{number}}}'.encode())


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_worker_runs_until_nothing_is_due(kind: str, tmp_path: Path) -> None:
    """It runs what its jobs enqueue, and does not wait for a retry of tomorrow."""
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/jobs.db"
    processor, numbers = make_processor(url, concurrency=2)
    async with asyncio.timeout(DEADLINE), processor:
        await enqueue_notes(processor, 20)
        await processor.enqueue_raw("note", b'{"number":20,"more":5}')
        retried = await processor.enqueue_raw("fail", b"{}")
        await processor.run(signals=False, until_empty=True)
        assert sorted(numbers) == [*range(21), *range(100, 105)]
        assert (await processor.get_status(retried)).state is State.RETRYING
        assert processor.health().state == "stopped"


async def test_more_jobs_of_a_full_key_than_an_exchange_parks_hide_no_other_job() -> None:
    """Neither `until_empty` nor `drain` takes a reply without jobs for an empty queue."""
    processor = Processor("memory://")
    numbers: list[int] = []

    @processor.job(name="sync", limits=[Limit(rate="1/h", key="customer")])
    async def sync(customer: str, number: int) -> None:
        numbers.append(number)

    async def enqueue_behind(customer: str, number: int) -> None:
        await processor.enqueue_many(sync.job("full", -1) for _ in range(MAX_PARKED + 1))
        await sync.enqueue(customer, number)

    async with asyncio.timeout(DEADLINE), processor:
        await sync.enqueue("full", 0)
        await processor.drain()
        await enqueue_behind("first", 1)
        await processor.run(signals=False, until_empty=True)
        assert numbers == [0, 1]
        await enqueue_behind("second", 2)
        await processor.drain()
        assert numbers == [0, 1, 2]


@pytest.mark.parametrize("kind", ["job", "key", "queue"])
async def test_a_worker_with_more_slots_than_a_limit_runs_all_jobs(
    kind: str, tmp_path: Path
) -> None:
    """The last job of the limit has ended here, and its outcome is not stored yet: a reply without
    jobs does not say that none is left."""
    queues = (QueueLimitSettings("default", concurrency=3),) if kind == "queue" else ()
    limits = {"job": [Limit(3)], "key": [Limit(3, name="three")], "queue": []}
    processor = Processor(f"sqlite:///{tmp_path}/jobs.db", concurrency=20, queue_limits=queues)
    numbers: list[int] = []

    @processor.job(limits=limits[kind])
    async def note(number: int) -> None:
        numbers.append(number)

    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many(note.job(number) for number in range(200))
        await processor.run(signals=False, until_empty=True)
        assert sorted(numbers) == list(range(200))


async def test_a_worker_stops_at_once_when_nothing_is_due(tmp_path: Path) -> None:
    processor, numbers = make_processor(f"sqlite:///{tmp_path}/jobs.db")
    async with asyncio.timeout(DEADLINE), processor:
        await processor.run(signals=False, until_empty=True)
        assert numbers == []


@pytest.mark.parametrize("count", [1, 7, 150])
async def test_a_worker_stops_after_a_number_of_jobs(count: int, tmp_path: Path) -> None:
    """The jobs beyond the number stay in the queue and count nothing."""
    processor, numbers = make_processor(f"sqlite:///{tmp_path}/jobs.db", concurrency=3)
    async with asyncio.timeout(DEADLINE), processor:
        await enqueue_notes(processor, 200)
        await processor.run(signals=False, max_jobs=count)
        assert sorted(numbers) == [*range(count)]
        assert await processor.queue_size() == 200 - count


async def test_the_last_job_is_not_interrupted() -> None:
    """The grace time is for stops from outside. Here it is zero."""
    processor = Processor("memory://", grace=0.0, concurrency=2)
    proceed, ended = asyncio.Event(), asyncio.Event()

    @processor.job
    async def wait() -> None:
        await proceed.wait()
        ended.set()

    async with asyncio.timeout(DEADLINE), processor:
        for _ in range(3):
            await wait.enqueue()
        running = asyncio.create_task(processor.run(signals=False, max_jobs=2))
        await wait_until(lambda: processor.health().running == 2, "both jobs run")
        proceed.set()
        await running
        assert ended.is_set()
        assert await processor.queue_size() == 1


async def test_the_conditions_are_checked() -> None:
    processor, _ = make_processor("memory://")
    async with processor:
        with pytest.raises(ConfigurationError, match="max_jobs must be 1 or more, not 0"):
            await processor.run(max_jobs=0)
        await processor.start()
        with pytest.raises(DefinitionError, match="need a worker that does not run yet"):
            await processor.run(until_empty=True)
