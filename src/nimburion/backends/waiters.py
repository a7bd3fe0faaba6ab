"""Calls of `wait`, and the notifications that end them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator
from contextlib import contextmanager

EVERY_QUEUE = "*"
"""As a notified queue: ends every call, whatever queue it waits for. No queue has this name."""


class Waiters:
    """The calls of `wait` on one handle. Belongs to one event loop.

    A notification that ends no call is kept for the next call that waits for its queue.
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
        notified: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[notified] = frozenset(queues)
        try:
            yield notified
        finally:
            self._waiting.pop(notified, None)

    def notify(self, queues: Collection[str]) -> None:
        """End the calls that wait for one of the queues.

        Keep the notifications of queues that no call waits for.
        """
        every = EVERY_QUEUE in queues
        missed = set(queues)
        for notified, wanted in self._waiting.items():
            if every or not wanted.isdisjoint(queues):
                missed -= wanted | {EVERY_QUEUE}
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
