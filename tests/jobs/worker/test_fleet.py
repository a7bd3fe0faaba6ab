"""What the workers of a fleet do together: few calls while they are idle, and a rescue in time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import wraps
from random import Random
from typing import Any

import pytest

from nimburion import Processor, job
from nimburion.backends.memory import MemoryBackend
from nimburion.backends.memory.consuming import MemoryConsuming
from nimburion.backends.memory.maintenance import MemoryMaintaining
from nimburion.backends.memory.reads import MemoryReading
from nimburion.core.exchange import Lane, ReserveRequest
from nimburion.core.service import Periodic
from nimburion.core.session import Session
from nimburion.jobs.worker.exchange.wakeups import compute_poll_interval
from nimburion.testing import FakeClock

TTL = 30.0
SWEEP = TTL / 6 * 1.1
"""The longest time between two looks of a rescuer."""
COUNTED: dict[type[Any], tuple[str, ...]] = {
    MemoryConsuming: ("exchange", "heartbeat", "rescue", "put_statistics"),
    MemoryMaintaining: ("prune",),
    MemoryReading: ("list_sessions", "list_queues", "list_records"),
}


@job(name="noop")
async def noop() -> None:
    """Do nothing."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The calls of all handles, by operation."""
    counts: Counter[str] = Counter()

    def count(operation: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Any]:
        @wraps(operation)
        async def counted(*arguments: Any, **options: Any) -> Any:
            counts[name] += 1
            return await operation(*arguments, **options)

        return counted

    for kind, names in COUNTED.items():
        for name in names:
            monkeypatch.setattr(kind, name, count(getattr(kind, name), name))
    return counts


async def elapse(clock: FakeClock, seconds: float, step: float = 0.25) -> None:
    """Let so much time pass, bit by bit."""
    for _ in range(int(seconds / step)):
        clock.advance(step)
        for _ in range(20):
            await asyncio.sleep(0)


async def start_fleet(backend: MemoryBackend, clock: FakeClock, count: int) -> list[Processor]:
    """Start workers whose timers do not run in step."""
    fleet = []
    for _ in range(count):
        processor = Processor(backend.new_handle(), clock=clock, session_ttl=TTL)
        processor.register(noop)
        await processor.start()
        fleet.append(processor)
        await elapse(clock, 0.25)
    return fleet


async def close_all(fleet: list[Processor], clock: FakeClock) -> None:
    closing = asyncio.gather(*(processor.close() for processor in fleet))
    while not closing.done():
        await elapse(clock, 0.25)


@pytest.mark.parametrize(("workers", "most"), [(1, 1.2), (50, 20.0)])
async def test_an_idle_fleet_makes_few_calls(
    workers: int, most: float, calls: Counter[str]
) -> None:
    clock = FakeClock()
    fleet = await start_fleet(MemoryBackend(clock=clock), clock, workers)
    await elapse(clock, 60.0)
    calls.clear()
    await elapse(clock, 120.0)
    assert calls.total() / 120.0 <= most, calls
    assert calls["rescue"] == 0
    await close_all(fleet, clock)


async def test_one_worker_alone_does_all_of_the_maintenance(calls: Counter[str]) -> None:
    clock = FakeClock()
    fleet = await start_fleet(MemoryBackend(clock=clock), clock, 1)
    await elapse(clock, 120.0)
    assert calls["prune"] >= 1
    assert calls["list_sessions"] >= 1
    assert calls["list_records"] >= 120.0 / 5.5 - 1
    await close_all(fleet, clock)


async def test_jobs_are_rescued_in_time_if_all_other_workers_die() -> None:
    """99 of 100 workers die at once, each with a job."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    (survivor,) = await start_fleet(backend, clock, 1)
    await survivor.backend.maintenance.pause_queue("default", paused=True)
    others = [
        Session(id=f"{n:032x}", ttl=TTL, queues=("other",), names=("noop",)) for n in range(99)
    ]
    for session in others:
        await backend.consuming.open_session(session)
        await survivor.enqueue(noop.job(), queue="other")
        request = ReserveRequest(1, (Lane("other", "noop"),), nonce=bytes.fromhex(session.id))
        reply = await backend.consuming.exchange(session.id, 1, (), request)
        assert len(reply.deliveries) == 1
    for _ in range(8):  # the survivor learns of them
        await elapse(clock, TTL / 4)
        for session in others:
            await backend.consuming.heartbeat(session.id)
    await elapse(clock, TTL + SWEEP + 0.5)
    queues = await backend.reads.list_queues()
    assert [queue.size for queue in queues if queue.name == "other"] == [99]
    await close_all([survivor], clock)


async def test_a_fleet_that_has_shrunk_polls_often_again(calls: Counter[str]) -> None:
    """A notification may have been sent to a dead worker."""
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    others = [Session(id=f"{n:032x}", ttl=TTL) for n in range(99)]
    for session in others:
        await backend.consuming.open_session(session)
    fleet = await start_fleet(backend, clock, 1)
    await elapse(clock, TTL / 3)
    calls.clear()
    for _ in range(4):
        for session in others:
            await backend.consuming.heartbeat(session.id)
        await elapse(clock, TTL / 4)
    assert calls["exchange"] <= 4
    await elapse(clock, TTL)
    calls.clear()
    await elapse(clock, 20.0)
    assert calls["exchange"] >= 9
    await close_all(fleet, clock)


@pytest.mark.parametrize(
    ("size", "has_expired", "seconds"),
    [
        (1, False, 2.0),
        (10, False, 2.0),
        (50, False, 10.0),
        (1000, False, 10.0),
        (1, True, 2.0),
        (1000, True, 5.0),
    ],
)
def test_idle_workers_poll_less_often_in_a_large_fleet(
    size: int, has_expired: bool, seconds: float
) -> None:
    assert compute_poll_interval(size, has_expired=has_expired) == seconds


def test_workers_that_share_the_work_tick_as_often_together_as_one_alone() -> None:
    clock, size = FakeClock(), itertools.repeat(20)
    shared = [
        Periodic(clock, 5.0, Random(seed), count_workers=lambda: next(size)) for seed in range(20)
    ]
    turns = sum(each.draw_turn() for each in shared for _ in range(1_000))
    assert turns == pytest.approx(1_000, rel=0.1)
    alone = Periodic(clock, 5.0, Random(1))
    assert all(alone.draw_turn() for _ in range(100))
