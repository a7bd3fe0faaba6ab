"""When it may be worth asking the backend: a ring, a due time that has come, or a poll.

A hint is never more than that: the exchange it leads to decides. So a missed ring costs at most one
poll interval, and an idle worker makes less than one call a second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from typing import cast

from nimburion.core.backend import Backend, LongPolling
from nimburion.core.clock import Clock
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply
from nimburion.core.service import Service, wait_for_first

_POLL = 1.0
_IDLE_POLL = 2.0
"""Where the backend rings and nothing has come for a while."""

_AFTER_ERROR = 1.0


class WakeupListener:
    """Calls `on_wakeup` when there may be work; silent from then until `listen`."""

    def __init__(
        self,
        backend: Backend,
        queues: tuple[str, ...],
        clock: Clock,
        on_wakeup: Callable[[], None],
    ) -> None:
        self._notifications = _NotificationListener(backend, queues, clock, on_wakeup)
        self._due_timer = _DueTimer(clock, on_wakeup)

    async def start(self) -> None:
        """Begin to listen."""
        await self._notifications.start()
        await self._due_timer.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._notifications.stop()
        await self._due_timer.stop()

    @property
    def failure(self) -> BaseException | None:
        """Why rings are not heard, or due times not watched; the poll of exchanges goes on."""
        return self._notifications.failure or self._due_timer.failure

    def resume(self) -> None:
        """The last hint was taken up, or there was none yet: a new one says something new."""
        self._notifications.resumed.set()

    @property
    def due_in(self) -> float:
        """Seconds until the earliest due time that the backend told of."""
        return self._due_timer.seconds_left

    def note_reply(self, reply: Reply, *, found: bool) -> None:
        """Learn from an exchange: when the next job is due, and whether it is quiet."""
        self._notifications.is_idle = not found
        self._due_timer.note_reply(reply)


class _NotificationListener(Service):
    """Waits for rings, with a poll behind them."""

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
        self.resumed = asyncio.Event()
        if not backend.capabilities.supports_long_poll:
            self.resumed.set()
        self.is_idle = False

    async def run(self) -> None:
        while not self.stopping.is_set():
            if not self.resumed.is_set():
                await wait_for_first(self.resumed.wait(), self.stopping.wait())
            await wait_for_first(self._wait_and_wake(), self.stopping.wait())

    async def _wait_and_wake(self) -> None:
        """Wait and pass it on in the same step: each step of the loop is a part of a job's way."""
        await self._wait()
        self.resumed.clear()
        self._on_wakeup()

    async def _wait(self) -> None:
        rings = self._backend.capabilities.notifies
        timeout = _IDLE_POLL if self.is_idle and rings else _POLL
        try:
            await self._backend.wait(self._queues, timeout)
        except BackendError as error:
            self._note(error)
            await self.clock.sleep(_AFTER_ERROR)
        else:
            self._note(None)


class _DueTimer(Service):
    """Wakes when the earliest scheduled job that the backend told of is due."""

    def __init__(self, clock: Clock, on_wakeup: Callable[[], None]) -> None:
        super().__init__(clock)
        self._on_wakeup = on_wakeup
        self._due: float | None = None
        self._changed = asyncio.Event()

    @property
    def seconds_left(self) -> float:
        """Seconds until then."""
        return math.inf if self._due is None else self._due - self.clock.monotonic()

    def note_reply(self, reply: Reply) -> None:
        """The backend's earliest due time, as of this reply."""
        if reply.next_due is None:
            self._due = None
            return
        due = self.clock.monotonic() + max(0.0, reply.next_due - reply.now)
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
            self._on_wakeup()


_LONGEST = 2.0
"""Seconds: an idle worker looks that often in any case, as news may be lost."""


class LongPoll:
    """Lets exchanges of an idle worker wait in a backend that is `patient`."""

    __slots__ = ("_backend", "is_supported")

    def __init__(self, backend: Backend, queues: Collection[str]) -> None:
        self.is_supported: bool = backend.capabilities.supports_long_poll and bool(queues)
        """Whether the backend can wait, and there is something to wait for."""
        self._backend = cast("LongPolling", backend)

    def choose_timeout(self, due_in: float) -> float:
        """Seconds for which the next exchange may wait, when something is due in `due_in`."""
        return min(_LONGEST, max(0.001, due_in)) if self.is_supported else 0.0

    def interrupt(self) -> None:
        """Something has come up: let an exchange that waits answer now."""
        if self.is_supported:
            self._backend.interrupt_long_poll()
