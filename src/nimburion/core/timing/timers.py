"""Timeouts for the tasks of one event loop, which share a single timer."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any


class SharedTimer:
    """Cancels waits that take too long and raises `TimeoutError`, as `asyncio.timeout` does.

    Use it for the tasks of one event loop. A single timer serves all waits: when it fires, it
    cancels the expired waits and is set for the next deadline. A wait therefore needs no timer of
    its own.
    """

    def __init__(self) -> None:
        self.waits: set[PendingTimeout] = set()
        self._timer: asyncio.Handle | None = None
        self.fires_at = math.inf

    def timeout(self, seconds: float) -> PendingTimeout:
        """Return a context manager that limits its block to `seconds`.

        After that time it cancels what the block waits for, and the block raises `TimeoutError`.
        Call it only inside a task.

        >>> async def answer() -> str:
        ...     with SharedTimer().timeout(5.0):
        ...         return await asyncio.sleep(0, "in time")
        >>> asyncio.run(answer())
        'in time'
        """
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None, "there is nothing to cancel"
        return PendingTimeout(self, task, loop.time() + seconds)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.fires_at = None, math.inf

    def add(self, wait: PendingTimeout) -> None:
        """Add a wait."""
        if wait.until < self.fires_at:
            self._set(wait.until)
        self.waits.add(wait)

    def remove(self, wait: PendingTimeout) -> None:
        """Remove a wait."""
        self.waits.discard(wait)

    def _set(self, moment: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_at(moment, self._cancel_expired)
        self.fires_at = moment

    def _cancel_expired(self) -> None:
        self.stop()
        now = asyncio.get_running_loop().time()
        for wait in self.waits:
            if wait.until <= now:
                wait.cancel()
        self.waits = {wait for wait in self.waits if not wait.over}
        if self.waits:
            self._set(min(wait.until for wait in self.waits))


class PendingTimeout:
    """One wait of one task: the context manager that `SharedTimer.timeout` returns."""

    __slots__ = ("_cancelling", "_deadlines", "_task", "over", "until")

    def __init__(self, deadlines: SharedTimer, task: asyncio.Task[Any], until: float) -> None:
        self._deadlines = deadlines
        self._task = task
        self._cancelling = task.cancelling()
        self.until: float = until
        self.over: bool = False

    def cancel(self) -> None:
        """Cancel the task, because its time is over."""
        self.over = True
        self._task.cancel()

    def __enter__(self) -> None:
        deadlines = self._deadlines
        if self.until < deadlines.fires_at:
            deadlines.add(self)
        else:
            deadlines.waits.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self.over:
            self._deadlines.waits.discard(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
