"""A limit to how long calls take, which costs a call no timer."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any


class Deadlines:
    """Cancels waits that take too long and raises `TimeoutError`, as `asyncio.timeout` does.

    For the tasks of one event loop. One timer stands for all waits: when it rings, it looks which
    of them are over, and is set anew for the next that is left.
    """

    def __init__(self) -> None:
        self._waits: set[Wait] = set()
        self._timer: asyncio.Handle | None = None
        self._rings_at = math.inf

    def within(self, seconds: float) -> Wait:
        """The block that this opens may take so long; then what it waits for is cancelled, and
        `TimeoutError` leaves it. Only in a task.

        >>> async def answer() -> str:
        ...     with Deadlines().within(5.0):
        ...         return await asyncio.sleep(0, "in time")
        >>> asyncio.run(answer())
        'in time'
        """
        task = asyncio.current_task()
        assert task is not None, "there is nothing to cancel"
        return Wait(self, task, asyncio.get_running_loop().time() + seconds)

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, math.inf

    def begin(self, wait: Wait) -> None:
        """Count a wait in."""
        if wait.until < self._rings_at:
            self._set(wait.until)
        self._waits.add(wait)

    def end(self, wait: Wait) -> None:
        """Count a wait out."""
        self._waits.discard(wait)

    def _set(self, moment: float) -> None:
        self.stop()
        self._timer = asyncio.get_running_loop().call_at(moment, self._look)
        self._rings_at = moment

    def _look(self) -> None:
        self.stop()
        now = asyncio.get_running_loop().time()
        for wait in self._waits:
            if wait.until <= now:
                wait.give_up()
        self._waits = {wait for wait in self._waits if not wait.over}
        if self._waits:
            self._set(min(wait.until for wait in self._waits))


class Wait:
    """One wait of one task: what `within` opens."""

    __slots__ = ("_cancelling", "_deadlines", "_task", "over", "until")

    def __init__(self, deadlines: Deadlines, task: asyncio.Task[Any], until: float) -> None:
        self._deadlines = deadlines
        self._task = task
        self._cancelling = task.cancelling()
        self.until: float = until
        self.over: bool = False

    def give_up(self) -> None:
        """Cancel the task: the time is over."""
        self.over = True
        self._task.cancel()

    def __enter__(self) -> None:
        self._deadlines.begin(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if not self.over:
            self._deadlines.end(self)
        elif self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
