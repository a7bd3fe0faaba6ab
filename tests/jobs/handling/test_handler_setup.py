"""Hooks around handlers run where the handler runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import Cancel, DefinitionError
from nimburion.core.job import State
from nimburion.jobs import Context, Job, Processor, job
from tests.waiting import wait_until_finished

VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


@pytest.fixture
async def processor() -> AsyncIterator[Processor]:
    async with Processor(MemoryBackend(), retry_backoff=0.0) as processor:
        yield processor


async def test_a_def_hook_runs_in_the_thread_of_the_handler(processor: Processor) -> None:
    seen: list[tuple[str, int, object]] = []

    @job
    def report(year: int) -> int:
        seen.append(("handler", threading.get_ident(), year))
        return year

    @processor.around_handler
    def hook(ctx: Context) -> Iterator[None]:
        seen.append(("before", threading.get_ident(), ctx.job))
        yield
        seen.append(("after", threading.get_ident(), ctx.job.year))

    processor.register(report)
    job_id = await processor.enqueue(report.job(2026))
    await processor.start()
    record = await wait_until_finished(processor, job_id)
    assert record.result == b"2026"
    assert [(what, value) for what, _, value in seen] == [
        ("before", None),
        ("handler", 2026),
        ("after", 2026),
    ]
    threads = {thread for _, thread, _ in seen}
    assert len(threads) == 1
    assert threading.get_ident() not in threads


async def test_an_async_hook_runs_on_the_event_loop(processor: Processor) -> None:
    seen: list[object] = []

    @processor.around_handler
    async def hook(ctx: Context) -> AsyncIterator[None]:
        VARIABLE.set(ctx.name)
        seen.append(asyncio.current_task())
        yield
        seen.append("after")

    @processor.around_handler
    def of_threads(ctx: Context) -> Iterator[None]:
        yield
        raise AssertionError(f"it surrounds `def` handlers only, not {ctx.name}")

    class Send(Job, name="send"):
        async def process(self, _: Context) -> str:
            assert seen == [asyncio.current_task()]
            return VARIABLE.get()

    processor.register(Send)
    job_id = await processor.enqueue(Send())
    await processor.start()
    record = await wait_until_finished(processor, job_id)
    assert record.result == b'"send"'
    assert seen[-1] == "after"


@pytest.mark.parametrize("form", ["def", "async def"])
async def test_the_first_hook_is_the_outermost_and_middleware_is_outside(
    processor: Processor, form: str
) -> None:
    order: list[str] = []

    def make(name: str) -> Any:
        def hook(_: Context) -> Iterator[None]:
            order.append(name)
            yield
            order.append(f"{name} left")

        async def async_hook(_: Context) -> AsyncIterator[None]:
            order.append(name)
            yield
            order.append(f"{name} left")

        return hook if form == "def" else async_hook

    async def middleware(ctx: Context, call_next: Any) -> object:
        order.append("middleware")
        return await call_next(ctx)

    def handle(_: Context, data: bytes) -> None:
        order.append(data.decode())

    async def handle_async(ctx: Context, data: bytes) -> None:
        handle(ctx, data)

    processor.around_handler(make("outer"))
    processor.around_handler(make("inner"))
    processor.use(middleware)
    processor.register("raw", handle if form == "def" else handle_async)
    await processor.enqueue_raw("raw", b"{}")
    assert await processor.process_one()
    assert order == ["middleware", "outer", "inner", "{}", "inner left", "outer left"]


@pytest.mark.parametrize("form", ["def", "async def"])
async def test_an_exception_of_the_handler_is_raised_in_the_hook(
    processor: Processor, form: str
) -> None:
    seen: list[BaseException] = []

    @processor.around_handler
    def hook(_: Context) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(error)
            raise Cancel("the hook decides") from error

    @processor.around_handler
    async def async_hook(_: Context) -> AsyncIterator[None]:
        try:
            yield
        except BaseException as error:
            seen.append(error)
            raise Cancel("the hook decides") from error

    def fail(_: Context, __: bytes) -> None:
        raise SystemExit("over")

    async def fail_async(ctx: Context, data: bytes) -> None:
        fail(ctx, data)

    processor.register("raw", fail if form == "def" else fail_async)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.drain()
    assert [repr(error) for error in seen] == ["SystemExit('over')"]
    assert (await processor.get_status(job_id)).state is State.CANCELLED


@pytest.mark.parametrize("form", ["def", "async def"])
async def test_a_hook_that_catches_the_exception_completes_the_job(
    processor: Processor, form: str
) -> None:
    @processor.around_handler
    def hook(_: Context) -> Iterator[None]:
        try:
            yield
        except ZeroDivisionError:
            return

    @processor.around_handler
    async def async_hook(_: Context) -> AsyncIterator[None]:
        try:
            yield
        except ZeroDivisionError:
            return

    def fail(_: Context, __: bytes) -> float:
        return 1 / 0

    async def fail_async(ctx: Context, data: bytes) -> float:
        return fail(ctx, data)

    processor.register("raw", fail if form == "def" else fail_async)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.drain()
    status = await processor.get_status(job_id)
    assert (status.state, status.result) == (State.COMPLETED, None)


async def test_an_unreadable_payload_is_seen_by_the_hook_and_never_retried(
    processor: Processor,
) -> None:
    seen: list[str] = []

    @processor.around_handler
    def hook(_: Context) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            seen.append(type(error).__name__)
            raise

    @job
    def report(year: int) -> None: ...

    processor.register(report)
    job_id = await processor.enqueue_raw("report", {"year": "old"})
    await processor.drain()
    status = await processor.get_status(job_id)
    assert (status.state, status.attempt) == (State.FAILED, 1)
    assert seen == ["UnreadablePayload"]


async def test_a_hook_that_raises_fails_the_attempt(processor: Processor) -> None:
    ran: list[bytes] = []

    @processor.around_handler
    def hook(ctx: Context) -> Iterator[None]:
        if ctx.attempt == 1:
            raise ConnectionError("no database")
        yield

    processor.register("raw", lambda _, data: ran.append(data), max_retries=0)
    job_id = await processor.enqueue_raw("raw", b"{}")
    await processor.drain()
    status = await processor.get_status(job_id)
    assert status.state is State.FAILED
    assert status.error is not None
    assert "no database" in status.error.message
    assert not ran


@pytest.mark.parametrize(
    "hook", [lambda _: None, "hook", object()], ids=["function", "text", "object"]
)
def test_a_hook_without_yield_is_refused(hook: Any) -> None:
    with pytest.raises(DefinitionError, match="one `yield`"):
        Processor(MemoryBackend()).around_handler(hook)


async def test_hooks_are_added_before_the_worker_starts(processor: Processor) -> None:
    await processor.start()

    def hook(_: Context) -> Iterator[None]:
        yield

    with pytest.raises(DefinitionError, match="before the processor is started"):
        processor.around_handler(hook)
