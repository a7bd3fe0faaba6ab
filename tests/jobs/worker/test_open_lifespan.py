"""The lifespan of a worker: opened before its first job, closed after its last."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import DefinitionError, LifespanError, NotOpen
from nimburion.jobs import Context, Processor, job
from tests.waiting import wait_until, wait_until_finished


class Resources:
    """What the lifespan of these tests yields."""

    def __init__(self) -> None:
        self.open = True


@pytest.fixture
def processor() -> Processor:
    return Processor(MemoryBackend())


async def test_it_is_open_while_jobs_run_and_closed_after_them(processor: Processor) -> None:
    order: list[str] = []
    running, proceed = asyncio.Event(), asyncio.Event()

    @processor.lifespan
    async def resources() -> AsyncIterator[Resources]:
        order.append("open")
        opened = Resources()
        yield opened
        opened.open = False
        order.append("closed")

    @processor.job()
    async def use(ctx: Context[Resources]) -> bool:
        running.set()
        await proceed.wait()
        order.append("handler")
        return ctx.state.open

    async with processor:
        job_id = await processor.enqueue(use.job())
        assert order == []  # opening the processor does not open the lifespan
        await processor.start()
        await asyncio.wait_for(running.wait(), 10)
        stopping = asyncio.create_task(processor.stop())
        await wait_until(lambda: processor.health().state == "stopping", "the worker stops")
        proceed.set()
        await stopping
        assert order == ["open", "handler", "closed"]
        assert (await processor.get_status(job_id)).result is True


async def test_each_start_opens_it_again(processor: Processor) -> None:
    opened: list[str] = []

    @processor.lifespan
    def resources() -> Iterator[None]:
        opened.append("open")
        yield
        opened.append("closed")

    async with processor:
        for _ in range(2):
            await processor.start()
            await processor.start()
            await processor.stop()
    assert opened == ["open", "closed"] * 2


async def test_one_task_opens_and_closes_it(processor: Processor) -> None:
    """Cancel scopes of anyio demand this."""
    tasks: list[object] = []

    @processor.lifespan
    async def resources() -> AsyncIterator[None]:
        tasks.append(asyncio.current_task())
        yield
        tasks.append(asyncio.current_task())

    async with processor:
        await processor.start()
    assert len(tasks) == 2
    assert tasks[0] is tasks[1]


async def test_process_one_and_drain_open_it_once_until_close(processor: Processor) -> None:
    order: list[str] = []

    @processor.lifespan
    async def resources() -> AsyncIterator[str]:
        order.append("open")
        yield "state"
        order.append("closed")

    @job
    def use(ctx: Context[str], number: int) -> None:
        order.append(f"{ctx.state} {number}")

    processor.register(use)
    async with processor:
        await processor.enqueue_many([use.job(number) for number in range(3)])
        await processor.process_one()
        await processor.drain()
    assert order == ["open", "state 0", "state 1", "state 2", "closed"]


def connect() -> None:
    raise ConnectionError("no model server")


async def test_an_error_before_the_yield_stops_the_worker(processor: Processor) -> None:
    @processor.lifespan
    async def resources() -> AsyncIterator[None]:
        connect()
        yield

    async with processor:
        with pytest.raises(LifespanError, match="ConnectionError: no model server") as caught:
            await processor.start()
        assert isinstance(caught.value.__cause__, ConnectionError)
        assert processor.health().state == "stopped"
        with pytest.raises(LifespanError):
            await processor.process_one()


async def test_a_stop_while_it_opens_cancels_it(processor: Processor) -> None:
    order: list[str] = []
    opening = asyncio.Event()

    @processor.lifespan
    async def resources() -> AsyncIterator[None]:
        try:
            opening.set()
            await asyncio.Event().wait()
            yield
        finally:
            order.append("cleaned up")

    async with processor:
        starting = asyncio.create_task(processor.start())
        await asyncio.wait_for(opening.wait(), 10)
        assert processor.health().state == "starting"
        await processor.stop()
        with pytest.raises(NotOpen):
            await starting
    assert order == ["cleaned up"]


async def test_an_error_after_the_yield_is_logged(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    @processor.lifespan
    async def resources() -> AsyncIterator[None]:
        yield
        raise ConnectionError("gone")

    with caplog.at_level(logging.ERROR, "nimburion.worker"):
        async with processor:
            await processor.start()
    assert [record.getMessage() for record in caplog.records] == [
        "the lifespan failed while it closed: ConnectionError('gone')"
    ]


async def test_a_lifespan_that_does_not_close_is_cancelled(
    processor: Processor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    @processor.lifespan
    async def resources() -> AsyncIterator[None]:
        yield
        try:
            await asyncio.Event().wait()
        finally:
            order.append("cancelled")

    monkeypatch.setattr("nimburion.jobs.worker.open_lifespan._CLOSE_TIMEOUT", 0.01)
    async with processor:
        await processor.start()
    assert order == ["cancelled"]
    assert "does not close" in caplog.text


async def test_the_threads_of_handlers_see_the_state(processor: Processor) -> None:
    @processor.lifespan
    def resources() -> Iterator[int]:
        yield threading.get_ident()

    @processor.job()
    def compare(ctx: Context[int]) -> bool:
        return ctx.state == threading.get_ident()

    async with processor:
        job_id = await processor.enqueue(compare.job())
        await processor.start()
        assert (await wait_until_finished(processor, job_id)).result == b"false"


async def test_without_a_lifespan_the_state_is_an_error_that_says_what_to_write(
    processor: Processor,
) -> None:
    @processor.job(max_retries=0)
    async def use(ctx: Context) -> None:
        assert ctx.state

    async with processor:
        job_id = await processor.enqueue(use.job())
        await processor.drain()
        error = (await processor.get_status(job_id)).error
    assert error is not None
    assert "@processor.lifespan" in error.message


def one() -> Iterator[None]:
    yield


def takes_processor(processor: Processor) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("function", "message"),
    [(lambda: None, "one `yield`"), (takes_processor, "without arguments")],
)
def test_a_wrong_function_is_refused(processor: Processor, function: Any, message: str) -> None:
    with pytest.raises(DefinitionError, match=message):
        processor.lifespan(function)


async def test_a_second_lifespan_and_a_late_one_are_refused(processor: Processor) -> None:
    assert processor.lifespan(one) is one
    with pytest.raises(DefinitionError, match="one lifespan"):
        processor.lifespan(one)
    async with processor:
        await processor.start()
        with pytest.raises(DefinitionError, match="before the processor is started"):
            processor.lifespan(one)
