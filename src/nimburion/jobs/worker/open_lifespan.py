"""Holds the lifespan of one worker open, from its first job to its last."""

from __future__ import annotations

import asyncio
import logging

from nimburion.core.errors import LifespanError
from nimburion.core.service import wait_for_first
from nimburion.jobs.handling.lifespan import NO_STATE, Lifespan

_log = logging.getLogger("nimburion.worker")

_CLOSE_TIMEOUT = 5.0
"""Seconds that a lifespan may take to close; then it is cancelled."""
_CANCEL_TIMEOUT = 1.0
"""Seconds that a cancelled lifespan has to end."""


class OpenLifespan:
    """Opens and closes a lifespan in a task of its own. Use each instance once.

    One task does both, because some libraries (anyio) close a resource only in the task that opened
    it. Start and stop of a worker run in different tasks.
    """

    def __init__(self, lifespan: Lifespan | None) -> None:
        self._lifespan = lifespan
        self._state: object = NO_STATE
        self._opened = asyncio.Event()
        self._close_requested = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> object:
        """Open the lifespan and return its state; `NO_STATE` if there is no lifespan.

        `LifespanError` is raised if the function raises or does not yield.
        """
        if self._lifespan is None:
            return NO_STATE
        self._task = task = asyncio.create_task(
            self._hold(self._lifespan), name="nimburion-lifespan"
        )
        try:
            await wait_for_first(self._opened.wait(), asyncio.wait({task}))
        except asyncio.CancelledError:
            task.cancel()
            raise
        if self._opened.is_set():
            return self._state
        self._task = None
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        raise LifespanError(
            f"the worker does not start, because its lifespan failed: {type(error).__name__}: "
            f"{error}"
        ) from error

    async def close(self, stop_now: asyncio.Event | None = None) -> None:
        """Close the lifespan. Does nothing if it is not open.

        An error is logged. A lifespan that does not close within five seconds is cancelled. So is
        one that still closes when `stop_now` is set.
        """
        task, self._task = self._task, None
        if task is None or task.get_loop() is not asyncio.get_running_loop():
            return
        self._close_requested.set()
        stop_now = stop_now or asyncio.Event()
        await wait_for_first(asyncio.wait({task}, timeout=_CLOSE_TIMEOUT), stop_now.wait())
        if not task.done():
            _log.warning("the lifespan does not close; it is cancelled, and the worker ends")
            task.cancel()
            await asyncio.wait({task}, timeout=_CANCEL_TIMEOUT)
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            _log.error("the lifespan failed while it closed: %r", error, exc_info=error)

    async def _hold(self, lifespan: Lifespan) -> None:
        async with lifespan() as self._state:
            self._opened.set()
            await self._close_requested.wait()
