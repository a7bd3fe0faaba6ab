"""Timeouts for the tasks of one event loop, which share a single timer."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any

import msgspec


class SharedTimer:
    """Cancels waits that take too long and raises `TimeoutError`, as `asyncio.timeout` does.

    Use it for the tasks of one event loop. A single timer serves all waits: when it fires, it
    cancels the expired waits and is set for the next deadline. A wait therefore needs no timer of
    its own.
    """

    def __init__(self) -> None:
        self.waits: set[PendingTimeout] = set()
        """The waits that have not ended."""
        self.fires_at: float = math.inf
        """The time of the loop at which the timer fires."""
        self._timer: asyncio.Handle | None = None

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
        return PendingTimeout(self, task, task.cancelling(), loop.time() + seconds)

    def stop(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self.fires_at = None, math.inf

    def start(self, moment: float) -> None:
        """Let the timer fire at this time of the loop instead."""
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
            self.start(min(wait.until for wait in self.waits))


class PendingTimeout(msgspec.Struct, eq=False):
    """One wait of one task: the context manager that `SharedTimer.timeout` returns."""

    timer: SharedTimer
    task: asyncio.Task[Any]
    cancelling: int
    """How many requests to cancel the task had before."""
    until: float
    """The time of the loop at which the wait is over."""
    over: bool = False

    def cancel(self) -> None:
        """Cancel the task, because its time is over."""
        self.over = True
        self.task.cancel()

    def __enter__(self) -> None:
        timer = self.timer
        if self.until < timer.fires_at:
            timer.start(self.until)
        timer.waits.add(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self.over:
            self.timer.waits.discard(self)
        elif self.task.uncancel() <= self.cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
