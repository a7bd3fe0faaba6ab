"""The hooks `on_failure` and `on_dead`: called before the outcome is sent, and changing nothing."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import (
    BackendUnavailable,
    Cancel,
    DefinitionError,
    JobNotFound,
    LeaseLost,
    PermanentError,
    RateLimitExceeded,
    Retry,
    Snooze,
)
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import AttemptError, JobRecord, State
from nimburion.core.session import Session
from nimburion.jobs import Context, Job, Processor, job
from nimburion.jobs.worker.attempt.attempt import Interruption
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import wait_until, wait_until_finished


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with Processor(MemoryBackend(), max_retries=1, retry_backoff=0.0) as processor:
        yield processor


class Calls:
    """Notes each call of its hooks."""

    def __init__(self, processor: Processor) -> None:
        self.seen: list[tuple[str, int, str]] = []
        processor.on_failure(self.on_failure)
        processor.on_dead(self.on_dead)

    async def on_failure(self, ctx: Context, error: AttemptError) -> None:
        self.seen.append(("failure", ctx.attempt, error.message))

    def on_dead(self, ctx: Context, error: AttemptError) -> None:
        self.seen.append(("dead", ctx.attempt, error.message))


async def fail(ctx: Context, _: bytes) -> None:
    raise ValueError(f"attempt {ctx.attempt}")


@pytest.mark.parametrize("drained", [True, False], ids=["drain", "worker"])
async def test_each_failed_attempt_calls_one_kind_of_hook(
    processor: Processor, drained: bool
) -> None:
    calls = Calls(processor)
    processor.register("raw", fail)
    job_id = await processor.enqueue_raw("raw", b"{}")
    if drained:
        await processor.drain()
    else:
        await processor.start()
        await wait_until_finished(processor, job_id)
    assert calls.seen == [("failure", 1, "attempt 1"), ("dead", 2, "attempt 2")]


async def test_other_outcomes_call_no_hook(processor: Processor) -> None:
    calls = Calls(processor)

    async def snooze(ctx: Context, _: bytes) -> None:
        raise Snooze(60)

    processor.register("snooze", snooze)
    processor.register("complete", lambda ctx, data: None)
    await processor.enqueue_raw("snooze", b"{}")
    await processor.enqueue_raw("complete", b"{}")
    assert await processor.drain() == 2
    assert calls.seen == []


async def test_the_hook_of_the_job_comes_first_and_has_the_arguments(processor: Processor) -> None:
    order: list[tuple[str, object]] = []

    def own(ctx: Context, error: AttemptError) -> None:
        order.append(("own", ctx.job.year))

    @processor.on_dead
    def of_all(ctx: Context, error: AttemptError) -> None:
        order.append(("all", error.kind))

    class Report(Job, name="report", on_dead=own, on_failure=own):
        year: int

        def process(self, ctx: Context) -> None:
            raise PermanentError("never")

    @job(name="other")
    def other() -> None:
        raise PermanentError("never")

    processor.register(Report, other)
    await processor.enqueue(Report(year=2026))
    await processor.drain()
    await processor.enqueue(other.job())
    await processor.drain()
    assert order == [("own", 2026), ("all", "permanent"), ("all", "permanent")]


async def test_an_unreadable_payload_is_reported_without_arguments(processor: Processor) -> None:
    seen: list[object] = []

    @processor.on_dead
    def of_all(ctx: Context, error: AttemptError) -> None:
        seen.extend([ctx.job, error.kind])

    @job
    def report(year: int) -> None: ...

    processor.register(report)
    await processor.enqueue_raw("report", {"year": "old"})
    await processor.drain()
    assert seen == [None, "unreadable"]


async def test_a_hook_enqueues_before_the_dead_letter_is_stored(processor: Processor) -> None:
    states: list[State] = []

    @processor.on_dead
    async def refund(ctx: Context, error: AttemptError) -> None:
        states.append((await processor.get_status(ctx.job_id)).state)
        await processor.enqueue_raw("refund", b"{}", id="refund")

    processor.register("raw", fail, max_retries=0)
    await processor.enqueue_raw("raw", b"{}", tenant="acme")
    await processor.process_one()
    assert states == [State.PROCESSING]
    assert (await processor.get_status("refund")).tenant == "acme"


async def test_a_def_hook_runs_in_a_thread_even_if_all_threads_are_occupied() -> None:
    proceed, called = threading.Event(), threading.Event()
    threads: list[int] = []

    def block(_: Context, __: bytes) -> None:
        proceed.wait(20)

    async with Processor(MemoryBackend(), concurrency=1) as processor:

        @processor.on_dead
        def hook(ctx: Context, error: AttemptError) -> None:
            threads.append(threading.get_ident())
            called.set()

        processor.register("raw", block, max_retries=0, timeout=0.01)
        job_id = await processor.enqueue_raw("raw", b"{}")
        await processor.start()
        await wait_until(called.is_set, "the hook is called while the handler still runs")
        record = await wait_until_finished(processor, job_id)
        assert record.state is State.FAILED
        assert threading.get_ident() not in threads
        proceed.set()


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("form", ["def", "async def"])
async def test_a_hook_that_raises_is_logged_and_the_next_one_is_called(
    processor: Processor,
    caplog: pytest.LogCaptureFixture,
    raised: type[BaseException],
    form: str,
) -> None:
    def hook(ctx: Context, error: AttemptError) -> None:
        raise raised("broken hook")

    async def async_hook(ctx: Context, error: AttemptError) -> None:
        raise raised("broken hook")

    processor.on_dead(hook if form == "def" else async_hook)
    calls = Calls(processor)
    processor.register("raw", fail, max_retries=0)
    job_id = await processor.enqueue_raw("raw", b"{}")
    with caplog.at_level(logging.ERROR, "nimburion.worker"):
        await processor.drain()
    assert (await processor.get_status(job_id)).state is State.FAILED
    assert [what for what, _, _ in calls.seen] == ["dead"]
    assert any("changes nothing about the job" in record.getMessage() for record in caplog.records)


async def test_a_hook_that_takes_too_long_is_interrupted(
    processor: Processor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nimburion.jobs.worker.attempt.failure_hook_runner.HOOKS_TIMEOUT", 0.01)
    ended: list[str] = []

    @processor.on_dead
    async def hook(ctx: Context, error: AttemptError) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("interrupted")

    calls = Calls(processor)
    processor.register("raw", fail, max_retries=0)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.drain()
    assert (await processor.get_status(job_id)).state is State.FAILED
    assert ended == ["interrupted"]
    assert calls.seen == []
    assert "took more than" in caplog.text


async def test_a_stop_interrupts_the_hook_and_the_outcome_is_still_stored(
    processor: Processor,
) -> None:
    running = asyncio.Event()

    @processor.on_dead
    async def hook(ctx: Context, error: AttemptError) -> None:
        running.set()
        await asyncio.Event().wait()

    processor.register("raw", fail, max_retries=0)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.start()
    await asyncio.wait_for(running.wait(), 10)
    await processor.stop(0.0)
    assert (await processor.get_status(job_id)).state is State.FAILED


async def test_a_cancel_request_during_the_hook_changes_nothing(processor: Processor) -> None:
    running, proceed = asyncio.Event(), asyncio.Event()
    ended: list[str] = []

    @processor.on_dead
    async def hook(ctx: Context, error: AttemptError) -> None:
        running.set()
        await proceed.wait()
        ended.append("hook")

    processor.register("raw", fail, max_retries=0)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.start()
    await asyncio.wait_for(running.wait(), 10)
    running_worker = processor._running
    assert running_worker is not None
    (attempt,) = running_worker._worker._slots.running
    attempt.interrupt(Interruption.CANCEL)
    proceed.set()
    record = await wait_until_finished(processor, job_id)
    assert (record.state, ended) == (State.FAILED, ["hook"])


class Stop(BaseException):
    """An error that no `except Exception` catches."""


@pytest.mark.parametrize("kind", ["async", "def"])
@pytest.mark.parametrize("drained", [True, False], ids=["drain", "worker"])
@pytest.mark.parametrize(
    "raised",
    [
        RuntimeError("oh"),
        PermanentError("never"),
        Retry("again", after=0),
        Snooze(0),
        Cancel("no"),
        RateLimitExceeded(1),
        LeaseLost("x"),
        asyncio.CancelledError(),
        Stop(),
    ],
    ids=repr,
)
async def test_nothing_that_a_hook_raises_changes_the_outcome(
    processor: Processor, raised: BaseException, kind: str, *, drained: bool
) -> None:
    async def hook(ctx: Context, error: AttemptError) -> None:
        raise raised

    def hook_in_thread(ctx: Context, error: AttemptError) -> None:
        raise raised

    processor.on_failure(hook if kind == "async" else hook_in_thread)
    processor.on_dead(hook if kind == "async" else hook_in_thread)
    processor.register("raw", fail)
    job_id = await processor.enqueue_raw("raw", b"{}")
    if drained:
        await processor.drain()
    else:
        await processor.start()
        await wait_until_finished(processor, job_id)
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.reason) == (State.FAILED, "exhausted")
    assert [error.message for error in record.history] == ["attempt 1", "attempt 2"]


async def test_nothing_that_a_hook_returns_or_sets_changes_the_outcome(
    processor: Processor,
) -> None:
    @processor.on_dead
    async def change(ctx: Context, error: AttemptError) -> object:
        ctx.set_result("a result")
        ctx.progress(1.0, "done")
        return "another result"

    @processor.on_dead
    async def cancel_itself(ctx: Context, error: AttemptError) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    processor.register("raw", fail, max_retries=0)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.drain()
    record = await processor.backend.reads.get_job(job_id)
    assert (record.state, record.result, len(record.history)) == (State.FAILED, None, 1)


@pytest.mark.parametrize("drained", [True, False], ids=["drain", "worker"])
async def test_a_job_whose_workers_were_lost_is_reported_by_the_worker_that_rescues_it(
    drained: bool,
) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with Processor(backend, clock=clock, max_lost=1) as processor:
        calls = Calls(processor)
        processor.register("raw", fail)
        job_id = await processor.enqueue_raw("raw", b"{}")
        await backend.consuming.open_session(
            Session(id="0" * 32, queues=("default",), names=("raw",))
        )
        await backend.consuming.exchange(
            "0" * 32, 1, [], ReserveRequest(1, (Lane("default", "raw"),))
        )
        clock.advance(31.0)
        if drained:
            await processor.drain()
        else:
            await processor.start()

            def is_called() -> bool:
                clock.advance(1.0)  # until the next rescue
                return bool(calls.seen)

            await wait_until(is_called, "the hook is called")
        assert [(what, attempt) for what, attempt, _ in calls.seen] == [("dead", 1)]
        assert (await processor.get_status(job_id)).state is State.FAILED


async def test_the_hook_for_a_lost_job_cannot_begin_a_transaction(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    async with Processor(backend, clock=clock, max_lost=1) as processor:

        @processor.on_dead
        async def write(ctx: Context, error: AttemptError) -> None:
            async with ctx.transaction():
                pass

        processor.register("raw", fail)
        await processor.enqueue_raw("raw", b"{}")
        await backend.consuming.open_session(
            Session(id="0" * 32, queues=("default",), names=("raw",))
        )
        await backend.consuming.exchange(
            "0" * 32, 1, [], ReserveRequest(1, (Lane("default", "raw"),))
        )
        clock.advance(31.0)
        await processor.drain()
    assert "the outcome of this attempt is decided" in caplog.text


class Unreadable(OverridableBackend):
    """Answers the reads of single jobs with these errors, in this order, and then as usual."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock=clock)
        self.errors: list[Exception] = []

    async def get_job(self, job_id: str) -> JobRecord:
        if self.errors:
            raise self.errors.pop(0)
        return await super().get_job(job_id)


async def test_each_job_that_lost_its_workers_is_reported_whatever_becomes_of_the_others() -> None:
    """One is deleted before its hook is called; then the backend does not answer."""
    clock = FakeClock()
    backend = Unreadable(clock)
    async with Processor(backend, clock=clock, max_lost=1) as processor:
        calls = Calls(processor)
        processor.register("raw", fail)
        for _ in range(3):
            await processor.enqueue_raw("raw", b"{}")
        await backend.consuming.open_session(
            Session(id="0" * 32, queues=("default",), names=("raw",))
        )
        await backend.consuming.exchange(
            "0" * 32, 1, [], ReserveRequest(3, (Lane("default", "raw"),))
        )
        backend.errors = [JobNotFound("deleted"), BackendUnavailable("no answer")]
        clock.advance(31.0)
        await processor.start()

        def are_called() -> bool:
            clock.advance(1.0)  # until the next rescue
            return len(calls.seen) == 2

        await wait_until(are_called, "the hook is called for the others")
        assert {what for what, _, _ in calls.seen} == {"dead"}


@pytest.mark.parametrize(
    "hook", ["text", lambda: None, lambda ctx: None], ids=["text", "none", "one"]
)
def test_a_wrong_hook_is_refused(hook: Any) -> None:
    processor = Processor(MemoryBackend())
    with pytest.raises(DefinitionError, match="on_dead"):
        processor.on_dead(hook)
    with pytest.raises(DefinitionError, match="on_failure"):
        job(on_failure=hook)(fail)
