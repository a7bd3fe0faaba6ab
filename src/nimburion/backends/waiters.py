"""Calls of `wait`, and the notifications that end them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterator
from contextlib import contextmanager

EVERY_QUEUE = "*"
"""Among notified queues: every call that waits for any queue. No queue has this name."""


class Waiters:
    """The calls of `wait` on one handle. A notification that ends none of them is kept for the next
    call that waits for its queue. Belongs to one event loop."""

    __slots__ = ("_missed", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[asyncio.Future[None], frozenset[str]] = {}
        self._missed: set[str] = set()

    def __len__(self) -> int:
        return len(self._waiting)

    def take_missed(self, queues: Collection[str]) -> bool:
        """Whether one of the queues was notified while no call waited for it. Forgets that."""
        missed = self._missed.intersection((*queues, EVERY_QUEUE))
        self._missed -= missed
        return bool(missed)

    @contextmanager
    def expect(self, queues: Collection[str]) -> Iterator[asyncio.Future[None]]:
        """A future that is done when one of the queues is notified while the block runs."""
        notified: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[notified] = frozenset(queues)
        try:
            yield notified
        finally:
            self._waiting.pop(notified, None)

    def notify(self, queues: Collection[str]) -> None:
        """End the calls that wait for one of the queues; keep what no call waits for."""
        every = EVERY_QUEUE in queues
        missed = set(queues)
        for notified, wanted in self._waiting.items():
            if every or not wanted.isdisjoint(queues):
                missed -= wanted | {EVERY_QUEUE}
                _resolve(notified)
        self._missed |= missed

    def end_all(self) -> None:
        """End every call."""
        for notified in self._waiting:
            _resolve(notified)

    def discard_all(self) -> None:
        """Forget every call: its event loop is gone."""
        self._waiting.clear()


async def wait_until(notified: asyncio.Future[None], pause: Awaitable[None]) -> None:
    """Return when the future is done or the pause is over. Cancels the pause."""
    pausing = asyncio.ensure_future(pause)
    pausing.add_done_callback(lambda _: _resolve(notified))
    try:
        await notified
    finally:
        pausing.cancel()


def _resolve(notified: asyncio.Future[None]) -> None:
    if not notified.done():
        notified.set_result(None)
