"""When it may be worth asking the store: a ring, a due time that has come, or a poll.

A hint is never more than that: the exchange it leads to decides. So a missed ring costs at most one
poll interval, and an idle worker makes less than one call a second.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Collection
from typing import cast

from nimburion.core.backend import Backend, Patient
from nimburion.core.clock import Clock
from nimburion.core.errors import BackendError
from nimburion.core.exchange import Reply
from nimburion.core.service import Service, first_of

_POLL = 1.0
_IDLE_POLL = 2.0
"""Where the store rings and nothing has come for a while."""

_AFTER_ERROR = 1.0


class Hints:
    """Calls `on_hint` when there may be work; silent from then until `listen`."""

    def __init__(
        self,
        backend: Backend,
        queues: tuple[str, ...],
        clock: Clock,
        on_hint: Callable[[], None],
    ) -> None:
        self._listener = _Listener(backend, queues, clock, on_hint)
        self._due_watch = _DueWatch(clock, on_hint)

    async def start(self) -> None:
        """Begin to listen."""
        await self._listener.start()
        await self._due_watch.start()

    async def stop(self) -> None:
        """Stop listening."""
        await self._listener.stop()
        await self._due_watch.stop()

    @property
    def failure(self) -> BaseException | None:
        """Why rings are not heard, or due times not watched; the poll of exchanges goes on."""
        return self._listener.failure or self._due_watch.failure

    def listen(self) -> None:
        """The last hint was taken up, or there was none yet: a new one says something new."""
        self._listener.taken.set()

    @property
    def due_in(self) -> float:
        """Seconds until the earliest due time that the store told of."""
        return self._due_watch.left

    def expect(self, reply: Reply, *, found: bool) -> None:
        """Learn from an exchange: when the next job is due, and whether it is quiet."""
        self._listener.quiet = not found
        self._due_watch.expect(reply)


class _Listener(Service):
    """Waits for rings, with a poll behind them."""

    def __init__(
        self,
        backend: Backend,
        queues: tuple[str, ...],
        clock: Clock,
        on_hint: Callable[[], None],
    ) -> None:
        super().__init__(clock)
        self._backend = backend
        self._queues = queues
        self._on_hint = on_hint
        self.taken = asyncio.Event()
        if not backend.capabilities.patient:
            self.taken.set()
        self.quiet = False

    async def run(self) -> None:
        while not self.stopping.is_set():
            if not self.taken.is_set():
                await first_of(self.taken.wait(), self.stopping.wait())
            await first_of(self._hint(), self.stopping.wait())

    async def _hint(self) -> None:
        """Wait and pass it on in the same step: each step of the loop is a part of a job's way."""
        await self._wait()
        self.taken.clear()
        self._on_hint()

    async def _wait(self) -> None:
        rings = self._backend.capabilities.notifies
        timeout = _IDLE_POLL if self.quiet and rings else _POLL
        try:
            await self._backend.wait(self._queues, timeout)
        except BackendError as error:
            self._note(error)
            await self.clock.sleep(_AFTER_ERROR)
        else:
            self._note(None)


class _DueWatch(Service):
    """Wakes when the earliest scheduled job that the store told of is due."""

    def __init__(self, clock: Clock, on_hint: Callable[[], None]) -> None:
        super().__init__(clock)
        self._on_hint = on_hint
        self._due: float | None = None
        self._changed = asyncio.Event()

    @property
    def left(self) -> float:
        """Seconds until then."""
        return math.inf if self._due is None else self._due - self.clock.monotonic()

    def expect(self, reply: Reply) -> None:
        """The store's earliest due time, as of this reply."""
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
                await first_of(self._changed.wait(), self.stopping.wait())
                continue
            left = self._due - self.clock.monotonic()
            if left > 0:
                await first_of(self.clock.sleep(left), self._changed.wait(), self.stopping.wait())
                continue
            self._due = None
            self._on_hint()


_LONGEST = 2.0
"""Seconds: an idle worker looks that often in any case, as news may be lost."""


class Patience:
    """Lets exchanges of an idle worker wait in a store that is `patient`."""

    __slots__ = ("_store", "offered")

    def __init__(self, backend: Backend, queues: Collection[str]) -> None:
        self.offered: bool = backend.capabilities.patient and bool(queues)
        """Whether the store can wait, and there is something to wait for."""
        self._store = cast("Patient", backend)

    def until(self, due_in: float) -> float:
        """Seconds for which the next exchange may wait, when something is due in `due_in`."""
        return min(_LONGEST, max(0.001, due_in)) if self.offered else 0.0

    def end(self) -> None:
        """Something has come up: let an exchange that waits answer now."""
        if self.offered:
            self._store.hurry()
