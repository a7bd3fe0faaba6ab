"""A worker obeys the commands that its heartbeats bring, and reports its vitals with them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from nimburion import job
from nimburion.backends.memory import MemoryBackend
from nimburion.core.session import SessionInfo, WorkerCommand
from nimburion.jobs import Processor
from tests.waiting import DEADLINE, wait_until

SHORT_TTL = 1.0
"""The least session TTL, so that heartbeats come every quarter of a second."""


@pytest.fixture
def numbers() -> list[int]:
    """The numbers that the handler has seen."""
    return []


@pytest.fixture
async def processor(numbers: list[int]) -> AsyncIterator[Processor]:
    @job(name="send")
    async def send(number: int) -> None:
        numbers.append(number)

    processor = Processor(MemoryBackend(), session_ttl=SHORT_TTL, code_version="deploy-7")
    processor.register(send)
    async with processor:
        await processor.start()
        yield processor


async def wait_for_session(
    processor: Processor, condition: Callable[[SessionInfo], bool]
) -> SessionInfo:
    """Return the worker's session once it meets the condition."""
    found: list[SessionInfo] = []

    async def is_found() -> bool:
        found[:] = [one for one in await processor.backend.reads.list_sessions() if condition(one)]
        return bool(found)

    await wait_until(is_found, "a session meets the condition")
    return found[0]


async def test_vitals_come_with_the_heartbeats(processor: Processor) -> None:
    session = await wait_for_session(processor, lambda session: session.vitals is not None)
    vitals = session.vitals
    assert vitals is not None
    assert (vitals.slots, vitals.busy, vitals.code_version) == (10, 0, "deploy-7")
    assert vitals.rss > 1_000_000
    assert vitals.lease_margin is not None
    assert 0 < vitals.lease_margin <= SHORT_TTL


async def test_a_quiet_worker_starts_nothing_until_it_is_resumed(
    processor: Processor, numbers: list[int]
) -> None:
    session = await wait_for_session(processor, lambda _: True)
    running = processor._running
    assert running is not None
    slots = running._worker._slots
    assert await processor.backend.maintenance.send_command(session.id, WorkerCommand.QUIET)
    await wait_until(lambda: slots.quiet, "the worker is quiet")
    await processor.enqueue_raw("send", b'{"number":1}')
    assert await processor.queue_size() == 1
    assert numbers == []
    assert await processor.backend.maintenance.send_command(session.id, None)
    await wait_until(lambda: numbers == [1], "the worker starts jobs again")


async def test_a_quiet_worker_is_not_woken_for_jobs(processor: Processor) -> None:
    """It would be woken in place of another one."""
    backend = processor.backend
    assert isinstance(backend, MemoryBackend)
    waiters = backend._data.shared.waiters

    def waits() -> bool:
        return any("default" in names for names in waiters.values())

    await wait_until(waits, "the worker waits for jobs")
    session = await wait_for_session(processor, lambda _: True)
    running = processor._running
    assert running is not None
    slots = running._worker._slots
    assert await backend.maintenance.send_command(session.id, WorkerCommand.QUIET)
    await wait_until(lambda: slots.quiet, "the worker is quiet")
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waits()
    assert await backend.maintenance.send_command(session.id, None)
    await wait_until(waits, "the worker waits for jobs again")


async def test_a_quiet_worker_stays_quiet_when_it_gets_a_new_session(
    processor: Processor, numbers: list[int]
) -> None:
    """The new session has the command, so that it can be seen and taken back."""
    first = await wait_for_session(processor, lambda _: True)
    assert await processor.backend.maintenance.send_command(first.id, WorkerCommand.QUIET)
    running = processor._running
    assert running is not None
    await wait_until(lambda: running._worker._slots.quiet, "the worker is quiet")
    await processor.backend.consuming.close_session(first.id)
    second = await wait_for_session(
        processor, lambda one: one.id != first.id and one.command is WorkerCommand.QUIET
    )
    await processor.enqueue_raw("send", b'{"number":1}')
    assert await processor.backend.maintenance.send_command(second.id, None)
    await wait_until(lambda: numbers == [1], "the worker starts jobs again")


async def test_a_stopped_worker_ends_its_run() -> None:
    processor = Processor(MemoryBackend(), session_ttl=SHORT_TTL)
    async with processor:
        running = asyncio.create_task(processor.run(signals=False))
        session = await wait_for_session(processor, lambda _: True)
        assert await processor.backend.maintenance.send_command(session.id, WorkerCommand.STOP)
        await asyncio.wait_for(running, DEADLINE)
        assert await processor.backend.reads.list_sessions() == []


async def test_a_worker_started_in_the_background_stops_too(processor: Processor) -> None:
    session = await wait_for_session(processor, lambda _: True)
    assert await processor.backend.maintenance.send_command(session.id, WorkerCommand.STOP)

    async def is_closed() -> bool:
        return not await processor.backend.reads.list_sessions()

    await wait_until(is_closed, "the session is closed")
    assert processor.health().state in {"stopping", "stopped"}


async def test_a_worker_that_was_stopped_can_be_started_again(
    processor: Processor, numbers: list[int]
) -> None:
    session = await wait_for_session(processor, lambda _: True)
    assert await processor.backend.maintenance.send_command(session.id, WorkerCommand.STOP)
    await wait_until(lambda: processor.health().state == "stopped", "the worker has stopped")
    await processor.start()
    await processor.enqueue_raw("send", b'{"number":1}')
    await wait_until(lambda: numbers == [1], "the new worker runs the job")


async def test_the_command_to_stop_is_logged_once(
    processor: Processor, caplog: pytest.LogCaptureFixture
) -> None:
    """Each heartbeat repeats it while the running jobs finish."""
    caplog.set_level(logging.INFO, "nimburion.worker")
    running = processor._running
    assert running is not None
    for _ in range(3):
        running._worker._apply_command(WorkerCommand.STOP)
    assert caplog.messages.count("stopping: an operator sent the command") == 1
