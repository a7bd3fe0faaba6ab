"""What clients and workers count is stored in the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random
from unittest.mock import AsyncMock

import pytest

from nimburion import job
from nimburion.backends.memory import MemoryBackend
from nimburion.core.errors import BackendUnavailable
from nimburion.core.events import Events
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.metrics.counters import JobCounters, LaneCounters
from nimburion.core.metrics.statistics import Statistics
from nimburion.core.session import Session
from nimburion.jobs import Processor
from nimburion.jobs.worker.maintenance import Rescuer
from nimburion.testing import FakeClock
from tests.overridden import OverridableBackend
from tests.waiting import wait_until


@job(name="send", queue="mail", max_retries=0)
def send(how: str) -> None:
    if how == "fail":
        raise ValueError(how)


class FailingBackend(OverridableBackend):
    """A memory backend that fails in some way when it is to store statistics."""

    down = False
    bug = False
    hanging: asyncio.Event | None = None
    """Set when a call hangs; None: no call hangs."""
    closed = 0

    async def put_statistics(self, source: str, rows: Sequence[Statistics]) -> None:
        if self.hanging is not None:
            self.hanging.set()
            await asyncio.Event().wait()
        if self.bug:
            raise ValueError("a bug")
        if self.down:
            raise BackendUnavailable("it is down")
        await super().put_statistics(source, rows)

    async def close(self) -> None:
        self.closed += 1
        await super().close()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def backend(clock: FakeClock) -> FailingBackend:
    return FailingBackend(clock=clock)


@pytest.fixture
def processor(backend: FailingBackend, clock: FakeClock) -> Processor:
    processor = Processor(backend, clock=clock)
    processor.register(send)
    return processor


async def read(backend: MemoryBackend, step: int = 3600) -> list[Statistics]:
    now = await backend.now()
    return await backend.reads.list_statistics(now - 10 * step, now + step, step)


async def test_closing_writes_the_last_counts(
    processor: Processor, backend: FailingBackend
) -> None:
    async with processor:
        for how in ("ok", "ok", "fail"):
            await processor.enqueue(send.job(how))
        await processor.drain()
    (row,) = await read(backend)
    assert (row.queue, row.name) == ("mail", "send")
    counters = row.counters
    assert (counters.enqueued, counters.started, counters.completed) == (3, 3, 2)
    assert (counters.failed, counters.retried) == (1, 0)
    assert (counters.wait.count, counters.run.count) == (3, 3)


async def test_several_openings_add_up(processor: Processor, backend: FailingBackend) -> None:
    for _ in range(2):
        async with processor:
            await processor.enqueue(send.job("ok"))
    (row,) = await read(backend)
    assert row.counters.enqueued == 2


async def test_counts_that_could_not_be_written_are_written_later(
    processor: Processor, backend: FailingBackend
) -> None:
    async with processor:
        backend.down = True
        await processor.enqueue(send.job("ok"))
        writer = processor._statistics.writer
        assert writer is not None
        with pytest.raises(BackendUnavailable):
            await writer.tick()
        backend.down = False
        await processor.enqueue(send.job("ok"))
    (row,) = await read(backend)
    assert row.counters.enqueued == 2


async def test_a_client_closes_though_the_backend_does_not_answer(
    processor: Processor, backend: FailingBackend
) -> None:
    async with processor:
        await processor.enqueue(send.job("ok"))
        backend.down = True
    assert await read(backend) == []


async def test_a_client_closes_its_backend_though_the_statistics_have_a_bug(
    processor: Processor, backend: FailingBackend
) -> None:
    await processor.open()
    await processor.enqueue(send.job("ok"))
    backend.bug = True
    with pytest.raises(ValueError, match="a bug"):
        await processor.close()
    assert backend.closed == 1


async def test_a_client_closes_within_seconds_though_a_write_hangs(
    processor: Processor, backend: FailingBackend, clock: FakeClock
) -> None:
    """The background write hangs already when the client closes."""
    await processor.open()
    await processor.enqueue(send.job("ok"))
    await wait_until(lambda: clock.sleepers > 0, "the writer waits for its interval")
    backend.hanging = asyncio.Event()
    clock.advance(20.0)
    await asyncio.wait_for(backend.hanging.wait(), 10.0)
    await asyncio.wait_for(processor.close(), 10.0)
    assert backend.closed == 1


async def test_a_client_without_counts_writes_nothing(
    processor: Processor, backend: FailingBackend
) -> None:
    async with processor:
        await processor.pending_count()
        assert processor._statistics.writer is None
    assert await read(backend) == []


async def rescue(backend: MemoryBackend, clock: FakeClock, *, max_lost: int) -> LaneCounters:
    """Run one rescue, and return the only counters that it changed."""
    counters = JobCounters()
    rescuer = Rescuer(
        backend,
        clock,
        Random(1),
        Events(),
        counters,
        ttl=30.0,
        max_lost=max_lost,
        no_rescue_before=lambda: 0.0,
        report_dead=AsyncMock(),
    )
    await rescuer.tick()
    (lane,) = counters.list_lanes()
    return lane


async def test_rescued_jobs_are_counted_by_queue_and_name() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.producing.enqueue(
        [NewJob("a", "send", "mail", b"{}"), NewJob("b", "send", "mail", b"{}")]
    )
    await backend.consuming.open_session(Session(id="0" * 32, queues=("mail",), names=("send",)))
    await backend.consuming.exchange("0" * 32, 1, [], ReserveRequest(2, (Lane("mail", "send"),)))
    clock.advance(31.0)
    lane = await rescue(backend, clock, max_lost=3)
    assert (lane.queue, lane.name, lane.rescued) == ("mail", "send", 2)
    assert lane.copy_counters().failed == 0


async def test_dead_letters_of_a_rescue_are_counted() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    await backend.producing.enqueue([NewJob("a", "send", "mail", b"{}")])
    await backend.consuming.open_session(Session(id="0" * 32, queues=("mail",), names=("send",)))
    await backend.consuming.exchange("0" * 32, 1, [], ReserveRequest(1, (Lane("mail", "send"),)))
    clock.advance(31.0)
    lane = await rescue(backend, clock, max_lost=1)
    assert lane.failed_by_reason == {"lost": 1}
    assert lane.copy_counters().failed == 1
