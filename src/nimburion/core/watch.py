"""A limit to how long calls take, which costs a call no timer."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self


class Watch:
    """Cancels a wait that takes too long and raises `TimeoutError`, as `asyncio.timeout` does.

    For the tasks of one event loop, each with one wait at a time. One timer stands for all waits:
    when it rings, it looks which of them are over, and is set anew for the next that is left.
    """

    def __init__(self) -> None:
        self._waits: dict[asyncio.Task[Any], tuple[float, int]] = {}
        """Until when each may last, and how often its task was cancelled before."""
        self._over: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float) -> Self:
        """The block that this opens may take so long."""
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "there is nothing to cancel"
        until = loop.time() + seconds
        self._waits[task] = until, task.cancelling()
        if self._timer is None or self._timer.when() > until:
            self._set(loop, until)
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
        task = asyncio.current_task()
        assert task is not None, "it was entered in a task"
        cancelled = self._waits.pop(task)[1]
        if task not in self._over:
            return
        self._over.remove(task)
        if task.uncancel() <= cancelled and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def _set(self, loop: asyncio.AbstractEventLoop, until: float) -> None:
        self.stop()
        self._timer = loop.call_at(until, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for task, (until, _) in self._waits.items():
            if until <= now and task not in self._over:
                self._over.add(task)
                task.cancel()
        left = [until for task, (until, _) in self._waits.items() if task not in self._over]
        if left:
            self._set(loop, min(left))
