"""The calls of batch handlers in a worker: each takes one slot, whatever the number of its jobs."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from nimburion.core.errors import Cancel
from nimburion.core.job import State
from nimburion.core.settings import QueueSettings
from nimburion.jobs import Batch, Context, Processor
from nimburion.jobs.worker.attempt import batch_run
from tests.waiting import DEADLINE, wait_until

LONG_FOR_PREFETCH = 0.025
"""Seconds: a worker prefetches no jobs that take longer than 20 ms."""


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_call_takes_more_jobs_than_there_are_slots(
    kind: str, is_async: bool, tmp_path: Path
) -> None:
    sizes: list[int] = []
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path}/jobs.db"
    processor = Processor(url, concurrency=2)

    async def add_async(numbers: list[int]) -> None:
        sizes.append(len(numbers))

    def add_blocking(numbers: list[int]) -> None:
        sizes.append(len(numbers))

    add = processor.job(name="add", batch=50)(add_async if is_async else add_blocking)
    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([add.job(n) for n in range(120)])
        await processor.run(signals=False, until_empty=True)
        assert (await processor.backend.reads.count_jobs())[State.COMPLETED] == 120
    assert sorted(sizes) == [20, 50, 50]


async def test_a_call_takes_more_jobs_than_one_exchange() -> None:
    sizes: list[int] = []
    processor = Processor("memory://", concurrency=1)

    @processor.job(batch=1200)
    async def add(numbers: list[int]) -> None:
        sizes.append(len(numbers))

    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([add.job(n) for n in range(1201)])
        await processor.run(signals=False, until_empty=True)
    assert sizes == [1200, 1]


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_worker_makes_as_many_calls_as_it_has_slots(is_async: bool) -> None:
    may_end = threading.Event()
    processor = Processor("memory://", concurrency=2)
    calls: list[int] = []

    async def add_async(numbers: list[int]) -> None:
        calls.append(len(numbers))
        await asyncio.to_thread(may_end.wait, DEADLINE)

    def add_blocking(numbers: list[int]) -> None:
        calls.append(len(numbers))
        may_end.wait(DEADLINE)

    add = processor.job(name="add", batch=3)(add_async if is_async else add_blocking)
    other = processor.job(name="other")(lambda: calls.append(0))
    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([add.job(n) for n in range(12)])
        await processor.start()
        await wait_until(lambda: calls == [3, 3], "both slots have a call")
        await other.enqueue()
        # The worker holds no third call: it has no slot for it.
        assert (await processor.backend.reads.count_jobs())[State.PROCESSING] == 6
        may_end.set()
        await wait_until(lambda: len(calls) == 5, "the other calls")
        await processor.stop()
    assert sorted(calls) == [0, 3, 3, 3, 3]


async def test_jobs_that_wait_for_their_batch_take_no_slot() -> None:
    processor = Processor("memory://", concurrency=1)
    called: list[list[int]] = []

    @processor.job(batch=Batch(3, wait=60))
    async def add(numbers: list[int]) -> None:
        called.append(numbers)

    @processor.job
    async def other() -> None: ...

    async with asyncio.timeout(DEADLINE), processor:
        waiting = await processor.enqueue_many([add.job(n) for n in range(2)])
        await processor.start()
        for _ in range(3):
            await processor.wait(await other.enqueue())
        assert [(await processor.get_status(each)).state for each in waiting] == ["processing"] * 2
        await add.enqueue(2)
        for each in waiting:
            await processor.wait(each)
        assert called == [[0, 1, 2]]
        await processor.stop()


async def test_a_batch_is_filled_while_all_slots_are_taken() -> None:
    processor = Processor("memory://", concurrency=1)
    may_end, has_started = asyncio.Event(), asyncio.Event()
    called: list[list[int]] = []

    @processor.job(batch=Batch(3, wait=60))
    async def add(numbers: list[int]) -> None:
        called.append(numbers)

    @processor.job
    async def long() -> None:
        has_started.set()
        await may_end.wait()

    async def have_joined() -> bool:
        return (await processor.backend.reads.count_jobs())[State.PROCESSING] == 4

    async with asyncio.timeout(DEADLINE), processor:
        await add.enqueue(0)
        await processor.start()
        await long.enqueue()
        await has_started.wait()
        ids = [await add.enqueue(n) for n in (1, 2, 3)]
        await wait_until(have_joined, "three jobs wait for their call")
        assert not called
        may_end.set()
        await processor.wait(ids[1])
        assert called == [[0, 1, 2]]
        await processor.stop()


@pytest.mark.parametrize("batch_wait", [0.0, 0.001])
async def test_calls_and_other_jobs_take_turns(batch_wait: float) -> None:
    processor = Processor("memory://", concurrency=1)
    order: list[str] = []

    async def run_for_a_while() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().call_later(LONG_FOR_PREFETCH, ended.set)
        await ended.wait()

    @processor.job(batch=Batch(3, wait=batch_wait))
    async def add(numbers: list[int]) -> None:
        order.append("add")
        await run_for_a_while()

    @processor.job
    async def other() -> None:
        order.append("other")
        await run_for_a_while()

    async with asyncio.timeout(DEADLINE), processor:
        for first in range(0, 18, 3):
            await processor.enqueue_many([add.job(first + n) for n in range(3)])
            await other.enqueue()
        await processor.run(signals=False, until_empty=True)
    assert (order.count("add"), order.count("other")) == (6, 6)
    assert 2 <= order[:6].count("add") <= 4


async def test_a_stop_releases_the_jobs_that_wait_for_their_call() -> None:
    processor = Processor("memory://", concurrency=4)

    @processor.job(batch=Batch(10, wait=60))
    async def add(numbers: list[int]) -> None: ...

    async def wait_for_their_call() -> bool:
        return (await processor.backend.reads.count_jobs())[State.PROCESSING] == 6

    async with asyncio.timeout(DEADLINE), processor:
        ids = await processor.enqueue_many([add.job(n) for n in range(6)])
        await processor.start()
        await wait_until(wait_for_their_call, "six jobs wait for their call")
        await processor.stop()
        for each in ids:
            record = await processor.get_status(each)
            assert (record.state, record.failures) == (State.PENDING, 0)


async def test_a_worker_that_may_start_few_jobs_does_not_wait_for_more() -> None:
    sizes: list[int] = []
    processor = Processor("memory://", concurrency=2)

    @processor.job(batch=10)
    async def add(numbers: list[int]) -> None:
        sizes.append(len(numbers))

    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([add.job(n) for n in range(12)])
        await processor.run(signals=False, max_jobs=7)
        assert (await processor.backend.reads.count_jobs())[State.PENDING] == 5
    assert sizes == [7]


async def test_the_limits_of_queues_and_names_hold_for_each_job() -> None:
    sizes: dict[str, list[int]] = {"capped": [], "limited": []}
    processor = Processor(
        "memory://", queues=(QueueSettings("default"), QueueSettings("small", concurrency=3))
    )

    @processor.job(queue="small", batch=10)
    async def capped(numbers: list[int]) -> None:
        sizes["capped"].append(len(numbers))

    @processor.job(batch=10, concurrency=4)
    async def limited(numbers: list[int]) -> None:
        sizes["limited"].append(len(numbers))

    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([capped.job(n) for n in range(6)])
        await processor.enqueue_many([limited.job(n) for n in range(8)])
        await processor.run(signals=False, until_empty=True)
    assert sizes == {"capped": [3, 3], "limited": [4, 4]}


async def test_a_job_whose_middleware_waits_for_another_gets_a_call_of_its_own() -> None:
    processor = Processor("memory://", concurrency=1)
    one_at_a_time = asyncio.Lock()
    sizes: list[int] = []

    async def wait_for_others(ctx: Context, call_next: Any) -> Any:
        async with one_at_a_time:
            return await call_next(ctx)

    @processor.job(batch=10)
    async def add(numbers: list[int]) -> None:
        sizes.append(len(numbers))

    processor.use(wait_for_others)
    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([add.job(n) for n in range(3)])
        await processor.run(signals=False, until_empty=True)
        assert (await processor.backend.reads.count_jobs())[State.COMPLETED] == 3
    assert sizes == [1, 1, 1]


async def test_a_job_that_its_middleware_ends_delays_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_run, "_MAX_ARRIVAL_DELAY", 2 * DEADLINE)
    processor = Processor("memory://", concurrency=1)
    called: list[list[int]] = []

    async def refuse_two(ctx: Context, call_next: Any) -> Any:
        if b"2" in ctx.payload:
            raise Cancel("not two")
        return await call_next(ctx)

    @processor.job(batch=3)
    async def add(numbers: list[int]) -> None:
        called.append(numbers)

    processor.use(refuse_two)
    async with asyncio.timeout(DEADLINE), processor:
        await processor.enqueue_many([add.job(n) for n in range(3)])
        await processor.run(signals=False, until_empty=True)
        counts = await processor.backend.reads.count_jobs()
    assert (counts[State.COMPLETED], counts[State.CANCELLED]) == (2, 1)
    assert called == [[0, 1]]


async def test_middleware_of_a_job_does_not_run_before_its_batch_starts() -> None:
    processor = Processor("memory://", concurrency=1)
    started: list[int] = []

    async def note_start(ctx: Context, call_next: Any) -> Any:
        started.append(ctx.attempt)
        return await call_next(ctx)

    @processor.job(batch=Batch(2, wait=60))
    async def add(numbers: list[int]) -> None: ...

    async def waits() -> bool:
        return (await processor.backend.reads.count_jobs())[State.PROCESSING] == 1

    processor.use(note_start)
    async with asyncio.timeout(DEADLINE), processor:
        first = await add.enqueue(1)
        await processor.start()
        await wait_until(waits, "the job waits for its batch")
        assert not started
        await add.enqueue(2)
        await processor.wait(first)
        assert started == [1, 1]
        await processor.stop()
