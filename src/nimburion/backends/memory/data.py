"""`MemoryData`: the data of a memory backend, as one handle sees it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection, Mapping

from nimburion.backends.memory.state import MemoryState
from nimburion.backends.waiters import ALL_WORKERS, EVERY_QUEUE, EVERY_SESSION
from nimburion.core.timing.clock import Clock


class MemoryData:
    """The data of a backend and the clock of one handle. An `AtomicStep` reads and changes it.

    Args:
        shared: the data, the lock and the waiters of all handles of the backend.
        clock: the clock of this handle.
    """

    def __init__(self, shared: SharedState, clock: Clock) -> None:
        self.shared: SharedState = shared
        self.clock: Clock = clock


class SharedState:
    """The data, the lock and the waiters that all handles of one backend share."""

    def __init__(self) -> None:
        self.lock: threading.RLock = threading.RLock()
        self.state: MemoryState = MemoryState()
        self.waiters: dict[asyncio.Future[Collection[str]], frozenset[str]] = {}
        """By the future of a call, what it waits for, oldest first."""
        self.notifications: int = 0
        """How many notifications there were."""
        self._last_notified: dict[str, int] = {}
        """By queue, the number of the last notification for which too few calls waited."""

    def add_waiter(
        self, names: Collection[str], seen: int | None = None
    ) -> asyncio.Future[Collection[str]]:
        """Return a future that is done when one of these queues or sessions is notified. Its result
        is for `LastWait.note_end`.

        It is done already if one of the queues was notified after the first `seen` notifications,
        and too few calls waited for it then.
        """
        waiter: asyncio.Future[Collection[str]] = asyncio.get_running_loop().create_future()
        with self.lock:
            if seen is not None and any(self._last_notified.get(name, 0) > seen for name in names):
                waiter.set_result(())
            else:
                self.waiters[waiter] = frozenset(names)
        return waiter

    def remove_waiter(self, waiter: asyncio.Future[Collection[str]]) -> None:
        with self.lock:
            self.waiters.pop(waiter, None)

    def notify(self, names: Mapping[str, int], *, passed: bool = False) -> None:
        """Wake the callers that wait for these queues or sessions, each on its own loop.

        One caller of a queue for each job, all callers of a session. `passed`: another worker found
        no job for itself after this wake-up.
        """
        woken: list[tuple[asyncio.Future[Collection[str]], Collection[str], str]] = []
        with self.lock:
            self.notifications += 1
            for name, jobs in names.items():
                left = ALL_WORKERS if name == EVERY_QUEUE or name[:1] == EVERY_SESSION else jobs
                may_pass = [] if passed or left == ALL_WORKERS else [name]
                for waiter, wanted in self.waiters.items():
                    if left and name in wanted:
                        woken.append((waiter, may_pass, name))
                        left -= 1
                for waiter, _, _ in woken:
                    self.waiters.pop(waiter, None)
                if left and not passed and name[:1] != EVERY_SESSION:
                    self._last_notified[name] = self.notifications
        for waiter, queues, name in woken:
            try:
                waiter.get_loop().call_soon_threadsafe(_wake, waiter, queues)
            except RuntimeError:  # its loop was closed while it waited
                self.notify({name: 1}, passed=passed)


def _wake(waiter: asyncio.Future[Collection[str]], may_pass: Collection[str]) -> None:
    if not waiter.done():
        waiter.set_result(may_pass)
