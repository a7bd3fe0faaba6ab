"""Calls of `wait` and `wait_for_session`, and the notifications that end them.

A notification names a queue or a session. The name of a session starts with `@`, which no queue
name contains.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator
from contextlib import contextmanager

EVERY_QUEUE = "*"
"""As a notified name: ends every call of `wait`, whatever its queues. No queue has this name."""
EVERY_SESSION = "@"
"""As a notified name: ends every call of `wait_for_session`, whatever its session."""


def make_session_name(session_id: str) -> str:
    """Return the name under which a session is notified.

    >>> make_session_name("4f1c")
    '@4f1c'
    """
    return f"{EVERY_SESSION}{session_id}"


def is_session_name(name: str) -> bool:
    """Return whether a notified name is that of a session, or of all sessions."""
    return name.startswith(EVERY_SESSION)


class Waiters:
    """The calls that wait on one handle. Belongs to one event loop.

    A notification of a queue that ends no call is kept for the next call that waits for the queue.
    """

    __slots__ = ("_missed", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], frozenset[str]] = {}
        self._missed: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def take_missed(self, queues: Collection[str]) -> bool:
        """Return whether one of the queues was notified while no call waited for it.

        The notifications are then cleared.
        """
        missed = self._missed.intersection((*queues, EVERY_QUEUE))
        self._missed -= missed
        return bool(missed)

    @contextmanager
    def expect(self, queues: Collection[str]) -> Iterator[asyncio.Future[None]]:
        """Yield a future that is done when one of the queues is notified inside the block."""
        with self._expect(frozenset((*queues, EVERY_QUEUE))) as notified:
            yield notified

    async def wait_for_session(self, session_id: str) -> None:
        """Return when the session is notified."""
        with self._expect(frozenset((make_session_name(session_id), EVERY_SESSION))) as notified:
            await notified

    @contextmanager
    def _expect(self, names: frozenset[str]) -> Iterator[asyncio.Future[None]]:
        notified: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[notified] = names
        try:
            yield notified
        finally:
            self._waiting.pop(notified, None)

    def notify(self, names: Collection[str]) -> None:
        """End the calls that wait for one of the queues or sessions.

        Keep the notifications of queues that no call waits for.
        """
        missed = {name for name in names if not is_session_name(name)}
        for notified, wanted in self._waiting.items():
            if not wanted.isdisjoint(names):
                missed -= wanted
                _resolve(notified)
        self._missed |= missed

    def end_all(self) -> None:
        """End all calls."""
        for notified in self._waiting:
            _resolve(notified)

    def discard_all(self) -> None:
        """Discard all calls, because their event loop no longer exists."""
        self._waiting.clear()


async def wait_until(notified: asyncio.Future[None], pause: Awaitable[None]) -> None:
    """Return when the future is done or the pause is over, and cancel the pause."""
    pausing = asyncio.ensure_future(pause)
    pausing.add_done_callback(lambda _: _resolve(notified))
    try:
        await notified
    finally:
        pausing.cancel()


def _resolve(notified: asyncio.Future[None]) -> None:
    if not notified.done():
        notified.set_result(None)
