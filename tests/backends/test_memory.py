"""The notifications of the memory backend."""

from __future__ import annotations

import asyncio

from nimburion.backends.memory import MemoryBackend
from nimburion.core.exchange import RESERVE_NOTHING, Lane, ReserveRequest
from nimburion.core.job import NewJob
from nimburion.core.session import Session
from nimburion.testing import FakeClock

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
