"""A whole worker on the memory backend and the real clock; waits on events, with a deadline."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, PermanentError, Retry, Snooze
from nimburion.core.job import JobRecord, State
from nimburion.core.timing.clock import SystemClock
from nimburion.jobs import Processor, job
from nimburion.jobs.handling.context import Context
from tests.waiting import read_busy_time, wait_until, wait_until_finished

DEADLINE = 10.0


async def wait_until_reached(
    processor: Processor, job_id: str, holds: Callable[[JobRecord], bool]
) -> JobRecord:
    """Return the record of a job once `holds` is true of it."""

    async def is_reached() -> bool:
        return holds(await processor.backend.reads.get_job(job_id))

    await wait_until(is_reached, f"job {job_id} is as expected")
    return await processor.backend.reads.get_job(job_id)


Make = Callable[..., Processor]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[Processor] = []

    def make(*jobs: Any, backend: MemoryBackend | None = None, **settings: Any) -> Processor:
        processor = Processor(backend or MemoryBackend(), **settings)
        if jobs:
            processor.register(*jobs)
        made.append(processor)
        return processor

    yield make
    for processor in made:
        await processor.close()


async def test_jobs_of_both_colours_complete_with_their_results(make: Make) -> None:
    @job
    async def add(a: int, b: int) -> int:
        return a + b

    @job
    def multiply(a: int, b: int) -> int:
        return a * b

    processor = make(add, multiply)
    await processor.start()
    ids = [
        await processor.enqueue(add.job(2, 3)),
        await processor.enqueue(multiply.job(2, 3)),
    ]
    results = [await processor.wait(job_id, DEADLINE) for job_id in ids]
    assert results == [5, 6]


async def test_never_more_at_once_than_the_concurrency(make: Make) -> None:
    running = most = 0
    proceed = asyncio.Event()

    @job
    async def count() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await proceed.wait()
        running -= 1

    processor = make(count, concurrency=4)
    await processor.open()
    ids = await processor.enqueue_many([count.job() for _ in range(20)])
    await processor.start()
    await wait_until(lambda: running == 4, "four jobs run")
    proceed.set()
    for job_id in ids:
        assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED
    assert most == 4


async def test_a_failing_job_is_retried_then_becomes_a_dead_letter(make: Make) -> None:
    @job(max_retries=2, retry_backoff=0.001)
    async def fail() -> None:
        raise ValueError("no luck")

    processor = make(fail)
    await processor.start()
    record = await wait_until_finished(processor, await processor.enqueue(fail.job()))
    assert (record.state, record.reason, record.failures) == (State.FAILED, "exhausted", 3)
    assert [(e.attempt, e.type, e.message) for e in record.history] == [
        (n, "ValueError", "no luck") for n in (1, 2, 3)
    ]
    assert "ValueError: no luck" in record.history[0].traceback


async def test_signals_end_an_attempt_as_they_say(make: Make) -> None:
    seen: dict[str, int] = {}

    @job(retry_backoff=60)
    async def once(how: str) -> None:
        seen[how] = seen.get(how, 0) + 1
        if seen[how] > 1:
            return
        match how:
            case "retry":
                raise Retry("again", after=0.001)
            case "snooze":
                raise Snooze(0.001)
            case "cancel":
                raise Cancel("not wanted")
            case "permanent":
                raise PermanentError("never")

    processor = make(once)
    await processor.start()
    ids = {
        how: await processor.enqueue(once.job(how))
        for how in ("retry", "snooze", "cancel", "permanent")
    }
    records = {how: await wait_until_finished(processor, job_id) for how, job_id in ids.items()}
    assert {how: (r.state, r.failures) for how, r in records.items()} == {
        "retry": (State.COMPLETED, 1),
        "snooze": (State.COMPLETED, 0),
        "cancel": (State.CANCELLED, 0),
        "permanent": (State.FAILED, 1),
    }
    assert seen == {"retry": 2, "snooze": 2, "cancel": 1, "permanent": 1}
    assert records["permanent"].reason == "permanent"


async def test_a_coroutine_that_overruns_its_timeout_fails(make: Make) -> None:
    @job(timeout=0.01, max_retries=0)
    async def hang() -> None:
        await asyncio.Event().wait()

    processor = make(hang)
    await processor.start()
    record = await wait_until_finished(processor, await processor.enqueue(hang.job()))
    assert record.error is not None
    assert (record.state, record.error.kind) == (State.FAILED, "timeout")


async def test_the_error_of_a_timeout_names_the_timeout_of_the_job_however_slow_its_start(
    make: Make,
) -> None:
    class SlowStart(SystemClock):
        """A clock on which 1 ms passes between any two readings."""

        def __init__(self) -> None:
            self.readings = itertools.count()

        def monotonic(self) -> float:
            return super().monotonic() + next(self.readings) / 1_000

    @job(timeout=0.05, max_retries=0)
    async def hang() -> None:
        await asyncio.Event().wait()

    processor = make(hang, clock=SlowStart())
    await processor.start()
    record = await wait_until_finished(processor, await processor.enqueue(hang.job()))
    assert record.error is not None
    assert record.error.message == "did not end within 0.05 s"


async def test_a_thread_that_overruns_keeps_its_slot_until_it_returns(make: Make) -> None:
    proceed = threading.Event()

    @job(timeout=0.01, max_retries=0)
    def hang() -> None:
        proceed.wait(DEADLINE)

    @job
    async def other() -> None:
        assert proceed.is_set()

    processor = make(hang, other, concurrency=1)
    await processor.start()
    record = await wait_until_finished(processor, await processor.enqueue(hang.job()))
    assert record.error is not None
    assert record.error.kind == "timeout"
    waiting = await processor.enqueue(other.job())
    record = await wait_until_reached(processor, waiting, lambda r: r.state is State.PENDING)
    proceed.set()
    record = await wait_until_finished(processor, waiting)
    assert (record.state, record.failures) == (State.COMPLETED, 0)


async def test_stop_lets_running_jobs_finish_and_hands_back_the_rest(make: Make) -> None:
    started, proceed = asyncio.Event(), asyncio.Event()

    @job
    async def slow() -> None:
        started.set()
        await proceed.wait()

    processor = make(slow, concurrency=1)
    await processor.start()
    first = await processor.enqueue(slow.job())
    await asyncio.wait_for(started.wait(), DEADLINE)
    second = await processor.enqueue(slow.job())
    stopping = asyncio.create_task(processor.stop(grace=DEADLINE))
    await asyncio.sleep(0)
    proceed.set()
    await stopping
    records = [await processor.backend.reads.get_job(job_id) for job_id in (first, second)]
    assert [r.state for r in records] == [State.COMPLETED, State.PENDING]
    assert await processor.backend.reads.list_sessions() == []


async def test_stop_interrupts_after_the_grace_and_counts_nothing(make: Make) -> None:
    started = asyncio.Event()

    @job
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    processor = make(endless)
    await processor.start()
    job_id = await processor.enqueue(endless.job())
    await asyncio.wait_for(started.wait(), DEADLINE)
    await processor.stop(grace=0.01)
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.failures, record.lost) == (State.PENDING, 0, 0)


async def test_a_thread_that_still_runs_at_stop_is_never_marked_done(make: Make) -> None:
    started, proceed = threading.Event(), threading.Event()

    @job
    def stubborn() -> None:
        started.set()
        proceed.wait(DEADLINE)

    processor = make(stubborn)
    await processor.start()
    job_id = await processor.enqueue(stubborn.job())
    await asyncio.to_thread(started.wait, DEADLINE)
    await processor.stop(grace=0.01)
    proceed.set()
    record = await processor.backend.reads.get_job(job_id)
    [session] = await processor.backend.reads.list_sessions()
    assert (record.state, session.left, session.running) == (State.PROCESSING, True, 1)


async def test_cancel_reaches_a_running_coroutine(make: Make) -> None:
    started = asyncio.Event()

    @job
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    processor = make(endless, session_ttl=2.0)
    await processor.start()
    job_id = await processor.enqueue(endless.job())
    await asyncio.wait_for(started.wait(), DEADLINE)
    assert await processor.cancel(job_id) == "requested"
    assert (await wait_until_finished(processor, job_id)).state is State.CANCELLED


async def test_a_thread_can_poll_for_its_cancellation(make: Make) -> None:
    started = threading.Event()

    @job
    def polite(ctx: Context) -> None:
        started.set()
        while not ctx.cancelled:
            threading.Event().wait(0.001)
        ctx.raise_if_cancelled()

    processor = make(polite, session_ttl=2.0)
    await processor.start()
    job_id = await processor.enqueue(polite.job())
    await asyncio.to_thread(started.wait, DEADLINE)
    await processor.cancel(job_id)
    assert (await wait_until_finished(processor, job_id)).state is State.CANCELLED


async def test_progress_is_seen_while_the_job_runs(make: Make) -> None:
    proceed = asyncio.Event()

    @job
    async def work(ctx: Context) -> None:
        ctx.progress(0.4, "counting")
        await proceed.wait()

    processor = make(work)
    await processor.start()
    job_id = await processor.enqueue(work.job())
    record = await wait_until_reached(processor, job_id, lambda r: r.progress is not None)
    assert record.progress is not None
    assert (record.progress.fraction, record.progress.message) == (0.4, "counting")
    proceed.set()
    await wait_until_finished(processor, job_id)


async def test_unknown_names_wait_for_a_worker_that_knows_them(make: Make) -> None:
    @job
    async def known() -> None: ...

    backend = MemoryBackend()
    first = make(known, backend=backend)
    await first.start()
    unknown = await first.enqueue_raw("unknown", b"{}")
    await wait_until_finished(first, await first.enqueue(known.job()))
    assert (await backend.reads.get_job(unknown)).state is State.PENDING
    second = make(backend=backend)
    second.register("unknown", lambda ctx, data: None)
    await second.start()
    assert (await wait_until_finished(second, unknown)).state is State.COMPLETED


async def test_a_delayed_job_starts_when_it_is_due_and_not_before(make: Make) -> None:
    @job
    async def note() -> None: ...

    processor = make(note)
    await processor.start()
    busy = read_busy_time(os.getpid())
    record = await wait_until_finished(processor, await processor.enqueue_after(note.job(), 0.05))
    assert record.started_at is not None
    busy = read_busy_time(os.getpid()) - busy
    assert record.due <= record.started_at < record.due + 1.0 + busy


async def test_a_suspect_runs_alone(make: Make) -> None:
    together: list[int] = []
    running = 0

    @job
    async def count(suspect: bool) -> None:
        nonlocal running
        running += 1
        await asyncio.sleep(0)
        if suspect:
            together.append(running)
        running -= 1

    backend = MemoryBackend()
    processor = make(count, backend=backend, concurrency=8)
    await processor.open()
    suspect = await processor.enqueue(count.job(suspect=True))
    for _ in range(2):
        await lose(backend, "count")
    assert (await backend.reads.get_job(suspect)).lost == 2
    others = await processor.enqueue_many([count.job(suspect=False) for _ in range(40)])
    await processor.start()
    for job_id in (suspect, *others):
        assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED
    assert together == [1]


async def lose(backend: MemoryBackend, name: str) -> None:
    """Let a worker reserve one job and die."""
    from nimburion.core.exchange import Lane, ReserveRequest
    from nimburion.core.ids import make_session_id
    from nimburion.core.session import Session

    session = Session(id=make_session_id(), ttl=0.0, names=(name,))
    await backend.consuming.open_session(session)
    want = ReserveRequest(1, (Lane("default", name),))
    assert (await backend.consuming.exchange(session.id, 1, [], want)).deliveries

    async def is_rescued() -> bool:
        return bool((await backend.consuming.rescue(10, max_lost=3)).returned)

    await wait_until(is_rescued, "its job is rescued")


async def test_start_and_stop_may_be_repeated(make: Make) -> None:
    @job
    async def note() -> None: ...

    processor = make(note)
    for _ in range(3):
        await processor.start()
        await processor.start()
        await wait_until_finished(processor, await processor.enqueue(note.job()))
        await processor.stop()
        await processor.stop()
    assert await processor.backend.reads.list_sessions() == []


async def test_thousands_of_jobs_run_once_each(make: Make) -> None:
    ran: list[int] = []

    @job
    async def note(n: int) -> None:
        ran.append(n)

    processor = make(note)
    await processor.open()
    await processor.enqueue_many([note.job(n) for n in range(5_000)])
    await processor.start()

    async def is_done() -> bool:
        return (await processor.backend.reads.count_jobs())[State.COMPLETED] == 5_000

    await wait_until(is_done, "all jobs are completed", 30)
    assert sorted(ran) == list(range(5_000))
