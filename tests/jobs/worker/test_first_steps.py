"""What `async def` handlers do in their first step.

From Python 3.12 on, it runs while the worker creates their tasks.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from nimburion.core.job import State
from nimburion.jobs import Processor
from tests.waiting import DEADLINE, wait_until, wait_until_finished

Handle = Callable[[], Awaitable[None]]
Make = Callable[[int, Handle], Processor]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Return a function that makes a processor with one handler, for jobs named `job`."""
    made: list[Processor] = []

    def make(concurrency: int, handle: Handle) -> Processor:
        processor = Processor("memory://", concurrency=concurrency)
        processor.job(name="job", retry_backoff=600)(handle)
        made.append(processor)
        return processor

    yield make
    for processor in made:
        await processor.close()


async def enqueue_jobs(processor: Processor, count: int) -> list[str]:
    return [await processor.enqueue_raw("job", b"{}") for _ in range(count)]


async def test_no_more_jobs_than_slots_start_before_the_loop_turns(make: Make) -> None:
    """So that timers and other tasks run while thousands of short jobs do."""
    started, in_turn, most = 0, 0, 0
    loop = asyncio.get_running_loop()

    async def handle() -> None:
        nonlocal started, in_turn, most
        started += 1
        in_turn += 1
        most = max(most, in_turn)

    def begin_turn() -> None:
        nonlocal in_turn
        in_turn = 0
        if started < 10_000:
            loop.call_soon(begin_turn)

    processor = make(10, handle)
    async with asyncio.timeout(DEADLINE), processor:
        await enqueue_jobs(processor, 10_000)
        begin_turn()
        await processor.run(signals=False, until_empty=True)
    assert started == 10_000
    # The worker may count from the middle of a turn on.
    assert most <= 2 * 10


async def test_a_job_that_ends_in_its_first_step_starts_the_next_one_beside_it(make: Make) -> None:
    """Not inside it: one call stack would hold all the slots."""
    depths: set[int] = set()

    async def handle() -> None:
        depth, frame = 0, sys._getframe()
        while frame.f_back is not None:
            depth, frame = depth + 1, frame.f_back
        depths.add(depth)

    processor = make(300, handle)
    async with asyncio.timeout(DEADLINE), processor:
        await enqueue_jobs(processor, 1_000)
        await processor.run(signals=False, until_empty=True)
        assert (await processor.backend.reads.count_jobs())[State.COMPLETED] == 1_000
    assert max(depths) - min(depths) < 30


async def test_a_handler_can_stop_its_worker_in_its_first_step(make: Make) -> None:
    """It is interrupted after the grace time, and no other job starts."""
    stopping = asyncio.Event()

    async def handle() -> None:
        stopping.set()
        await processor.stop(0.0)

    processor = make(1, handle)
    async with asyncio.timeout(DEADLINE), processor:
        ids = await enqueue_jobs(processor, 3)
        await processor.start()
        await stopping.wait()
        await processor.stop()
        records = [await processor.backend.reads.get_job(job_id) for job_id in ids]
    assert {(each.state, each.failures, each.lost) for each in records} == {(State.PENDING, 0, 0)}


async def test_a_handler_that_cancels_all_tasks_and_returns_stops_the_worker(make: Make) -> None:
    """Among them the one that reserves jobs, while it runs."""
    test = asyncio.current_task()
    started = 0

    async def handle() -> None:
        nonlocal started
        started += 1
        for task in asyncio.all_tasks() - {test}:
            task.cancel()

    processor = make(2, handle)
    async with asyncio.timeout(DEADLINE), processor:
        await processor.start()
        ids = await enqueue_jobs(processor, 6)
        await wait_until(lambda: processor.health().state == "stopped", "the worker has stopped")
        records = [await processor.backend.reads.get_job(job_id) for job_id in ids]
    completed = [each for each in records if each.state is State.COMPLETED]
    # A task that is cancelled before its first step has not started: its job is released. The
    # reserve loop learns that it is cancelled when it waits next.
    assert 1 <= len(completed) == started < 6
    assert {(each.failures, each.lost) for each in records} == {(0, 0)}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
async def test_a_forked_child_that_awaits_starts_no_job(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    """It ends, although the worker has more jobs to start when the child leaves its first step."""
    forked, worker = 0, os.getpid()

    async def handle() -> None:
        nonlocal forked
        if os.getpid() != worker:
            os.write(2, b"a job runs in the child\n")
        elif not forked:
            forked = os.fork()
            if not forked:
                await asyncio.sleep(0)

    processor = make(3, handle)
    async with asyncio.timeout(DEADLINE), processor:
        ids = await enqueue_jobs(processor, 6)
        await processor.start()
        for job_id in ids:
            assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED
    _, status = await asyncio.to_thread(os.waitpid, forked, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert "a job runs in the child" not in capfd.readouterr().err
