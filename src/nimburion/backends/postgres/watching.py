"""A limit to how long a call takes, which costs a call no timer."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self


class Watch:
    """Cancels a wait that takes too long and raises `TimeoutError`, as `asyncio.timeout` does.

    One wait at a time. One timer stands for many of them: when it rings, it looks whether the time
    of the present wait is over, and is set anew if not.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0
        self._over = False
        self._cancelling = 0

    def within(self, seconds: float) -> Self:
        """The block that this opens may take so long."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "there is nothing to cancel"
        self._task, self._cancelling, self._over = task, task.cancelling(), False
        self._until = loop.time() + seconds
        if self._timer is None or self._timer.when() > self._until:
            self.stop()
            self._timer = loop.call_at(self._until, self._look, loop)
        return self

    def stop(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._over or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._task is None:
            return
        if loop.time() < self._until:
            self._timer = loop.call_at(self._until, self._look, loop)
        else:
            self._over = True
            self._task.cancel()
