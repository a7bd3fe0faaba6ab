"""The notifications of the memory backend, and what an error leaves behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection
from unittest import mock

import pytest

from nimburion.backends.memory import MemoryBackend
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.core.exchange import RESERVE_NOTHING, Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.limits import LimitRule, make_job_limit_name
from nimburion.core.session import Session
from nimburion.core.settlement import Completed
from nimburion.testing import FakeClock
from tests.waiting import DEADLINE

SESSION = "5" * 32
WANT = ReserveRequest(1, (Lane("default", "mail"),))


async def open_session() -> MemoryBackend:
    """Return a backend with one session. Its clock stands still, so that no wait times out."""
    backend = MemoryBackend(clock=FakeClock())
    await backend.consuming.open_session(Session(id=SESSION, names=("mail",)))
    return backend


async def is_notified(backend: MemoryBackend, queue: str = "default") -> bool:
    """Return whether a call of `wait` returns although nothing more happens."""
    waiting = asyncio.ensure_future(backend.consuming.wait((queue,), 60.0))
    for _ in range(5):  # steps of the event loop
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    return not waiting.cancelled()


async def test_a_notification_between_an_exchange_and_a_wait_ends_the_wait() -> None:
    backend = await open_session()
    assert (await backend.consuming.exchange(SESSION, 1, [], WANT)).deliveries == []
    await backend.new_handle().producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    assert await is_notified(backend)
    assert not await is_notified(backend, "other")


async def test_a_wait_on_an_event_loop_that_was_closed_fails_no_enqueue() -> None:
    """Its wake-up goes to the next call that waits."""
    backend = MemoryBackend(clock=FakeClock())
    closed = asyncio.new_event_loop()
    shared = backend._data.shared
    waiter: asyncio.Future[Collection[str]] = closed.create_future()
    closed.close()
    shared.waiters[waiter] = frozenset(["default"])
    waiting = asyncio.ensure_future(backend.consuming.wait(("default",), 60.0))
    await asyncio.sleep(0)
    await backend.producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    async with asyncio.timeout(DEADLINE):
        await waiting
    assert not shared.waiters


async def test_what_an_exchange_has_seen_ends_no_wait() -> None:
    backend = await open_session()
    await backend.producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    assert len((await backend.consuming.exchange(SESSION, 1, [], WANT)).deliveries) == 1
    assert not await is_notified(backend)


async def test_an_exchange_that_reserves_nothing_has_seen_nothing() -> None:
    backend = await open_session()
    await backend.consuming.exchange(SESSION, 1, [], WANT)
    await backend.producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    await backend.consuming.exchange(SESSION, 2, [], RESERVE_NOTHING)
    assert await is_notified(backend)


async def lease_limited(backend: MemoryBackend) -> list[Completed]:
    """Lease both jobs of a name with a limit; return the settlements that complete them."""
    limits = {"mail": {make_job_limit_name("mail"): LimitRule(concurrency=2)}}
    await backend.consuming.open_session(Session(id=SESSION, names=("mail",), limits=limits))
    await backend.producing.enqueue([NewJob(id_, "mail", "default", b"{}") for id_ in ("a", "b")])
    request = ReserveRequest(2, WANT.lanes)
    reply = await backend.consuming.exchange(SESSION, 1, [], request)
    return [Completed(delivery.lease) for delivery in reply.deliveries]


async def check_usable(backend: MemoryBackend) -> None:
    """Check that another thread can use the backend: no lock is left behind."""
    used = threading.Event()

    def use() -> None:
        asyncio.run(backend.new_handle().reads.list_queues())
        used.set()

    threading.Thread(target=use, daemon=True).start()
    assert await asyncio.to_thread(used.wait, DEADLINE), "the lock is held"


async def test_an_error_at_the_end_of_a_step_leaves_no_lock_held() -> None:
    backend = MemoryBackend(clock=FakeClock())
    done = await lease_limited(backend)
    fails = mock.patch.object(AtomicStep, "_notify_freed", side_effect=RuntimeError("planted"))
    with fails, pytest.raises(RuntimeError, match="planted"):
        await backend.consuming.exchange(SESSION, 2, done, RESERVE_NOTHING)
    await check_usable(backend)


async def test_a_clock_that_fails_leaves_no_lock_held() -> None:
    clock = FakeClock()
    backend = MemoryBackend(clock=clock)
    fails = mock.patch.object(clock, "now", side_effect=RuntimeError("planted"))
    with fails, pytest.raises(RuntimeError, match="planted"):
        await backend.producing.enqueue([NewJob("a", "mail", "default", b"{}")])
    await check_usable(backend)


async def test_a_step_that_fails_looks_for_no_worker_to_notify() -> None:
    backend = MemoryBackend(clock=FakeClock())
    done = await lease_limited(backend)
    settle, count = AtomicStep.settle, 0

    def settle_once(*args: object) -> object:
        nonlocal count
        count += 1
        if count > 1:
            raise RuntimeError("planted")
        return settle(*args)  # type: ignore[arg-type]

    with (
        mock.patch.object(AtomicStep, "settle", settle_once),
        mock.patch.object(AtomicStep, "_notify_freed") as notify_freed,
        pytest.raises(RuntimeError, match="planted"),
    ):
        await backend.consuming.exchange(SESSION, 2, done, RESERVE_NOTHING)
    notify_freed.assert_not_called()
