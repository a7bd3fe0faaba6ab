"""`MemoryData`: the data of a memory backend, as one handle sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from typing import TypeVar

from nimburion.backends.memory.state import MemoryState, to_micros
from nimburion.backends.memory.transitions import AtomicStep
from nimburion.backends.waiters import is_session_name
from nimburion.core.timing.clock import Clock

T = TypeVar("T")


class MemoryData:
    """Runs the operations of one handle on the data of its backend, one at a time.

    Args:
        shared: the data, the lock and the waiters of all handles of the backend.
        clock: the clock of this handle.
    """

    def __init__(self, shared: SharedState, clock: Clock) -> None:
        self.shared = shared
        self.clock: Clock = clock

    def run_atomically(self, operation: Callable[[AtomicStep], T]) -> T:
        """Run `operation` under the lock, then notify waiters of the queues it changed."""
        shared = self.shared
        with shared.lock:
            step = AtomicStep(shared.state, to_micros(self.clock.now()))
            answer = operation(step)
        if step.names_to_notify:
            shared.notify(step.names_to_notify)
        return answer


class SharedState:
    """The data, the lock and the waiters that all handles of one backend share."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.state = MemoryState()
        self.waiters: dict[asyncio.Future[None], frozenset[str]] = {}
        self.notifications = 0
        """How many notifications there were."""
        self._last_notified: dict[str, int] = {}
        """By queue, the number of its last notification."""

    def add_waiter(self, names: Collection[str], seen: int | None = None) -> asyncio.Future[None]:
        """Return a future that is done when one of these queues or sessions is notified.

        It is done already if one of the queues was notified after the first `seen` notifications.
        """
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self.lock:
            if seen is not None and any(self._last_notified.get(name, 0) > seen for name in names):
                waiter.set_result(None)
            else:
                self.waiters[waiter] = frozenset(names)
        return waiter

    def remove_waiter(self, waiter: asyncio.Future[None]) -> None:
        with self.lock:
            self.waiters.pop(waiter, None)

    def notify(self, names: set[str]) -> None:
        """Wake the callers that wait for any of these queues or sessions, each on its own loop."""
        with self.lock:
            self.notifications += 1
            for name in names:
                if not is_session_name(name):
                    self._last_notified[name] = self.notifications
            if not self.waiters:
                return
            notified = [
                waiter
                for waiter, names_of_waiter in self.waiters.items()
                if not names_of_waiter.isdisjoint(names)
            ]
            for waiter in notified:
                del self.waiters[waiter]
        for waiter in notified:
            waiter.get_loop().call_soon_threadsafe(_wake, waiter)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
