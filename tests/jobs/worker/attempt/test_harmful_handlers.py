"""Harmful handlers on the event loop and in a thread: what becomes of them, and of other jobs.

`tests/jobs/worker/children/test_hostile_handlers.py` has the same for child processes, and
`tests/crash/test_lost_workers.py` what takes the worker along.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Unpack, cast

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.job import JobRecord, State
from nimburion.core.settings import SettingsOptions
from nimburion.jobs import Context, Processor
from nimburion.jobs.handling.context import get_record
from nimburion.jobs.options.policy import PolicyOptions
from nimburion.jobs.worker.attempt import unresponsive_handlers
from nimburion.jobs.worker.attempt.attempt import Attempt
from tests.waiting import DEADLINE, wait_until, wait_until_finished

Make = Callable[..., Processor]
Handler = Callable[[Context, bytes], Any]
MEBIBYTE = 1 << 20


async def wait_shortly(_: Context, __: bytes) -> None:
    await asyncio.sleep(0)


def do_nothing(_: Context, __: bytes) -> None: ...


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Make a processor with a harmful handler and one neighbour of each kind."""
    made: list[Processor] = []

    def make(
        harmful: Handler,
        *,
        policy: PolicyOptions | None = None,
        **settings: Unpack[SettingsOptions],
    ) -> Processor:
        settings.setdefault("concurrency", 2)
        processor = Processor(MemoryBackend(), **settings)
        processor.register("harmful", harmful, **(policy or {}))
        processor.register("on_loop", wait_shortly)
        processor.register("in_thread", do_nothing)
        made.append(processor)
        return processor

    yield make
    for processor in made:
        await processor.stop(0.0)
        await processor.close()


async def run_neighbours(processor: Processor) -> None:
    """Run jobs of both kinds to their end; each runs once."""
    names = ["on_loop", "in_thread"] * 5
    ids = [await processor.enqueue_raw(name, b"{}") for name in names]
    records = [await wait_until_finished(processor, job_id) for job_id in ids]
    assert {(one.state, one.failures, one.lost) for one in records} == {(State.COMPLETED, 0, 0)}


async def run_harmful(processor: Processor) -> JobRecord:
    """Run the harmful job to its end, and neighbours after it."""
    await processor.start()
    record = await wait_until_finished(processor, await processor.enqueue_raw("harmful", b"{}"))
    await run_neighbours(processor)
    return record


def as_coroutine(function: Callable[[], Any]) -> Handler:
    async def handler(_: Context, __: bytes) -> Any:
        return function()

    return handler


def as_function(function: Callable[[], Any]) -> Handler:
    return lambda _, __: function()


FORMS = pytest.mark.parametrize("form", [as_coroutine, as_function], ids=["loop", "thread"])


def find_warning(caplog: pytest.LogCaptureFixture, text: str) -> logging.LogRecord | None:
    return next((one for one in caplog.records if text in one.getMessage()), None)


# It blocks, or never returns


async def test_a_handler_that_blocks_its_thread_delays_no_other_job(make: Make) -> None:
    proceed = threading.Event()
    processor = make(as_function(lambda: proceed.wait(DEADLINE)))
    await processor.start()
    job_id = await processor.enqueue_raw("harmful", b"{}")
    await run_neighbours(processor)
    assert (await processor.get_status(job_id)).state is State.PROCESSING
    proceed.set()
    assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED


async def test_a_thread_that_continues_after_its_timeout_is_logged_with_its_stack(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    proceed, loop = threading.Event(), asyncio.get_running_loop()

    def wait_in_thread(ctx: Context, _: bytes) -> None:
        timeout = cast("Attempt", get_record(ctx)).timeout
        assert timeout is not None
        loop.call_soon_threadsafe(timeout.limit.reschedule, 0.0)  # it passes now
        proceed.wait(DEADLINE)

    processor = make(wait_in_thread, policy={"timeout": 60, "max_retries": 0})
    caplog.set_level(logging.INFO, "nimburion.worker")
    record = await run_harmful(processor)
    assert record.error is not None
    assert (record.state, record.error.kind) == (State.FAILED, "timeout")
    warning = find_warning(caplog, "its thread continues")
    assert warning is not None
    assert "1 of 2 slots" in warning.getMessage()
    assert 'execution="process"' in warning.getMessage()
    assert "in wait_in_thread" in (warning.stack_info or "")
    assert warning.__dict__["job_id"] == record.id
    proceed.set()
    await wait_until(
        lambda: find_warning(caplog, "its slot is free") is not None, "the return is logged"
    )


async def test_a_coroutine_that_catches_its_cancellation_is_logged_and_keeps_its_slot(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unresponsive_handlers, "WARN_AFTER", 0.1)
    proceed = asyncio.Event()

    async def refuse_to_end(_: Context, __: bytes) -> None:
        try:
            await proceed.wait()
        except asyncio.CancelledError:
            await proceed.wait()

    processor = make(refuse_to_end, policy={"timeout": 0.01}, session_ttl=1.0)
    await processor.start()
    job_id = await processor.enqueue_raw("harmful", b"{}")
    await wait_until(
        lambda: find_warning(caplog, "its timeout passed") is not None, "the warning is logged"
    )
    warning = find_warning(caplog, "its timeout passed")
    assert warning is not None
    assert "catches asyncio.CancelledError" in warning.getMessage()
    assert "in refuse_to_end" in (warning.stack_info or "")
    await run_neighbours(processor)
    assert (await processor.get_status(job_id)).state is State.PROCESSING
    proceed.set()
    assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED
    found = [one for one in caplog.records if "its timeout passed" in one.getMessage()]
    assert len(found) == 1, "once, not with each heartbeat"


async def test_a_cancelled_thread_that_continues_is_logged(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unresponsive_handlers, "WARN_AFTER", 0.1)
    started, proceed = threading.Event(), threading.Event()

    def ignore_cancel(_: Context, __: bytes) -> None:
        started.set()
        proceed.wait(DEADLINE)

    processor = make(ignore_cancel, session_ttl=1.0)
    await processor.start()
    job_id = await processor.enqueue_raw("harmful", b"{}")
    await asyncio.to_thread(started.wait, DEADLINE)
    await processor.cancel(job_id)
    await wait_until(lambda: find_warning(caplog, "it was cancelled") is not None, "it is logged")
    warning = find_warning(caplog, "it was cancelled")
    assert warning is not None
    assert "check ctx.cancelled" in warning.getMessage()
    assert "in ignore_cancel" in (warning.stack_info or "")
    proceed.set()
    await wait_until_finished(processor, job_id)


# It wants more memory than there is


@FORMS
async def test_memory_that_cannot_be_had_is_a_failure(
    make: Make, form: Callable[..., Handler]
) -> None:
    processor = make(form(lambda: bytearray(1 << 60)), policy={"max_retries": 0})
    record = await run_harmful(processor)
    assert record.error is not None
    assert (record.state, record.error.type) == (State.FAILED, "MemoryError")


# It forks


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@FORMS
async def test_a_forked_child_ends_with_its_handler(
    make: Make, form: Callable[..., Handler]
) -> None:
    def fork() -> int:
        """Return in both processes."""
        child = os.fork()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else -1

    record = await run_harmful(make(form(fork)))
    assert (record.state, record.result) == (State.COMPLETED, b"0")


# It leaves something behind


async def test_a_task_that_a_handler_leaves_runs_on_and_harms_nobody(make: Make) -> None:
    left: list[asyncio.Task[None]] = []
    reached = asyncio.Event()
    proceed = asyncio.Event()

    async def continue_after_the_job() -> None:
        await proceed.wait()
        reached.set()

    async def leave_tasks(_: Context, __: bytes) -> None:
        left.append(asyncio.create_task(continue_after_the_job()))
        left.append(asyncio.create_task(continue_after_the_job()))

    processor = make(leave_tasks)
    record = await run_harmful(processor)
    assert record.state is State.COMPLETED
    await processor.stop(0.0)
    assert [one.done() for one in left] == [False, False], "nobody cancels them"
    proceed.set()
    await asyncio.wait_for(reached.wait(), DEADLINE)
    await asyncio.gather(*left)


async def test_a_thread_that_a_handler_leaves_keeps_no_slot(make: Make) -> None:
    proceed = threading.Event()
    left = threading.Thread(target=proceed.wait, args=(DEADLINE,))
    processor = make(as_function(left.start), concurrency=1)
    record = await run_harmful(processor)
    assert record.state is State.COMPLETED
    await processor.stop(0.0)
    assert left.is_alive()
    proceed.set()
    left.join()


# It floods its output


@contextmanager
def unread_output() -> Iterator[Callable[[], None]]:
    """Make standard output a pipe that nobody reads; yield a function that starts to read it."""
    reading, writing = os.pipe()
    sizes: list[int] = []

    def read_all() -> None:
        while data := os.read(reading, MEBIBYTE):
            sizes.append(len(data))

    reader = threading.Thread(target=read_all)
    with os.fdopen(writing, "w") as output, redirect_stdout(output):
        yield reader.start
        if reader.ident is None:
            reader.start()
    reader.join()
    os.close(reading)
    assert sum(sizes) == MEBIBYTE


def flood() -> None:
    sys.stdout.write("x" * MEBIBYTE)
    sys.stdout.flush()


async def test_a_flood_of_output_that_nobody_reads_blocks_its_thread_only(
    make: Make,
) -> None:
    processor = make(as_function(flood))
    with unread_output() as start_to_read:
        await processor.start()
        job_id = await processor.enqueue_raw("harmful", b"{}")
        await run_neighbours(processor)
        assert (await processor.get_status(job_id)).state is State.PROCESSING
        start_to_read()
        assert (await wait_until_finished(processor, job_id)).state is State.COMPLETED


async def test_a_flood_of_output_that_nobody_reads_blocks_the_loop_and_is_logged(
    make: Make,
) -> None:
    """As any handler that blocks: its job and the stack are logged, and the others wait."""
    messages: list[str] = []

    class StartReader(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "the event loop is blocked by job" in record.getMessage():
                messages.append(f"{record.getMessage()}\n{record.stack_info}")
                start_to_read()

    processor = make(as_coroutine(flood), loop_lag_limit=0.2)
    handler, worker_log = StartReader(), logging.getLogger("nimburion.worker")
    worker_log.addHandler(handler)
    try:
        with unread_output() as start_to_read:
            record = await run_harmful(processor)
    finally:
        worker_log.removeHandler(handler)
    assert record.state is State.COMPLETED
    [message] = messages
    assert "(harmful)" in message
    assert "in flood" in message
