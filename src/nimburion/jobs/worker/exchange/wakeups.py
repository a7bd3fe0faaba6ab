"""Detects when an exchange may find jobs: a notification, a due time, or a poll.

A wake-up is only a sign: the exchange that follows decides. So a lost notification delays a job
until any worker of the queue polls, and an idle worker makes less than one call a second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from typing import cast

from nimburion.core.backend import Backend, LongPolling
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply
from nimburion.core.service import Service, wait_for_first
from nimburion.core.timing.clock import Clock

_POLL_INTERVAL = 1.0
"""Seconds between polls of a worker that found jobs, or whose backend sends no notifications."""
_IDLE_POLL_INTERVAL = 2.0
"""Seconds between polls of an idle worker of a small fleet whose backend sends notifications."""
_FLEET_POLLS = 5.0
"""Polls a second of all workers of a large fleet together."""
_LONGEST_POLL_INTERVAL = 10.0
"""The most seconds between polls: less than `DUE_WINDOW`. A queue may have one worker only."""
_LONGEST_POLL_FRACTION = 1 / 3
"""The largest fraction of the TTL of the session for which an exchange waits in the backend."""
_LONGEST_POLL_INTERVAL_AFTER_DEATH = 5.0
"""The most seconds between polls while the session of a dead worker has expired: a notification may
have been sent to it.
"""

_PAUSE_AFTER_ERROR = 1.0
"""Seconds until the next wait after the backend did not answer."""


def compute_poll_interval(fleet_size: int, *, has_expired: bool) -> float:
    """Return the seconds between polls of an idle worker whose backend sends notifications.

    `has_expired`: a session has expired, and was not rescued yet.

    >>> compute_poll_interval(1, has_expired=False), compute_poll_interval(50, has_expired=False)
    (2.0, 10.0)
    """
    longest = _LONGEST_POLL_INTERVAL_AFTER_DEATH if has_expired else _LONGEST_POLL_INTERVAL
    return min(max(_IDLE_POLL_INTERVAL, fleet_size / _FLEET_POLLS), longest)


class WakeupListener(Service):
    """Waits for notifications, and polls if none arrives: then it calls `on_wakeup`, because there
    may be work, and waits for `resume`.

    A call of `Consuming.wait` is an idle entry: the backend then wakes this worker in place of
    another. So only a worker that can start a job at once listens.
    """

    def __init__(
        self,
        backend: Backend,
        queues: tuple[str, ...],
        clock: Clock,
        on_wakeup: Callable[[], None],
    ) -> None:
        super().__init__(clock)
        self._backend = backend
        self._queues = queues
        self._on_wakeup = on_wakeup
        self.resumed: asyncio.Event = asyncio.Event()
        if not backend.capabilities.supports_long_poll:
            self.resumed.set()
        self._withdrawn = asyncio.Event()
        self.is_idle: bool = False
        """Whether the last reply had no job."""
        self._notifies = False
        self._idle_poll_interval = _IDLE_POLL_INTERVAL
        self._interval_shortened = asyncio.Event()

    def resume(self) -> None:
        """Listen for the next notification: an exchange has handled the last one."""
        self._withdrawn.clear()
        self.resumed.set()

    def withdraw(self) -> None:
        """Stop listening until `resume`: this worker cannot start a job at once."""
        self.resumed.clear()
        self._withdrawn.set()

    def set_poll_interval(self, seconds: float) -> None:
        """Change the seconds between polls while this worker is idle and the backend notifies. A
        shorter interval applies at once.
        """
        if seconds < self._idle_poll_interval:
            self._interval_shortened.set()
        self._idle_poll_interval = seconds

    async def run(self) -> None:
        self._notifies = self._backend.capabilities.notifies  # known when the backend is open
        while not self.stopping.is_set():
            if not self.resumed.is_set():
                await wait_for_first(self.resumed.wait(), self.stopping.wait())
            else:
                self._interval_shortened.clear()
                await wait_for_first(
                    self._wait_and_wake(),
                    self._withdrawn.wait(),
                    self._interval_shortened.wait(),
                    self.stopping.wait(),
                )

    async def _wait_and_wake(self) -> None:
        """Wait and call `on_wakeup` in the same step of the event loop.

        Each further step would add to the latency of a job.
        """
        timeout = self._idle_poll_interval if self.is_idle and self._notifies else _POLL_INTERVAL
        try:
            await self._backend.consuming.wait(self._queues, timeout)
        except BackendError as error:
            self.failure: BaseException | None = error
            await self.clock.sleep(_PAUSE_AFTER_ERROR)
        else:
            self.failure = None
        self.resumed.clear()
        self._on_wakeup()


class DueTimer(Service):
    """Calls `on_due` when the earliest scheduled job that the backend has reported is due.

    The backend reports a due time to one worker of the fleet (`Reply.next_due`).
    """

    def __init__(self, clock: Clock, on_due: Callable[[], None]) -> None:
        super().__init__(clock)
        self._on_due = on_due
        self._due: float | None = None
        self._changed = asyncio.Event()

    @property
    def seconds_left(self) -> float:
        """Seconds until that job is due; infinite if there is none."""
        return math.inf if self._due is None else self._due - self.clock.monotonic()

    def note_reply(self, reply: Reply, *, is_partial: bool) -> None:
        """Store the earliest due time that the reply reports. `is_partial`: the request left out
        lanes of this worker, so it may be later than the one that is known.
        """
        if reply.next_due is None:
            self._due = self._due if is_partial else None
            return
        due = self.clock.monotonic() + max(0.0, reply.next_due - reply.now)
        if is_partial and self._due is not None:
            due = min(due, self._due)
        if self._due is None or abs(due - self._due) > 0.0005:
            self._due = due
            self._changed.set()

    async def run(self) -> None:
        while not self.stopping.is_set():
            self._changed.clear()
            if self._due is None:
                await wait_for_first(self._changed.wait(), self.stopping.wait())
                continue
            left = self._due - self.clock.monotonic()
            if left > 0:
                await wait_for_first(
                    self.clock.sleep(left), self._changed.wait(), self.stopping.wait()
                )
                continue
            self._due = None
            self._on_due()


class LongPoll:
    """Long polling: an idle worker's exchange waits inside a backend that supports it.

    So a job arrives in the reply itself.
    """

    __slots__ = ("_consuming", "_session_ttl", "is_supported", "longest")

    def __init__(self, backend: Backend, queues: Collection[str], session_ttl: float) -> None:
        self.is_supported: bool = backend.capabilities.supports_long_poll and bool(queues)
        """Whether the backend supports long polls and the worker serves at least one queue."""
        self._session_ttl = session_ttl
        self.longest: float = _IDLE_POLL_INTERVAL
        """The longest long poll in seconds.

        An idle worker checks this often in any case, because a notification may be lost.
        """
        self._consuming = cast("LongPolling", backend.consuming)

    def choose_timeout(self, due_in: float) -> float:
        """Return the timeout of the next long poll in seconds; a job is due in `due_in`."""
        longest = min(self.longest, self._session_ttl * _LONGEST_POLL_FRACTION)
        return min(longest, max(0.001, due_in))

    def interrupt(self) -> None:
        """Make a waiting exchange return immediately."""
        if self.is_supported:
            self._consuming.interrupt_long_poll()
