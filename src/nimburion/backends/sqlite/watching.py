"""Rings for what a caller committed on a connection of its own: nothing tells of that commit, so
the file is looked at until what was written there is to be seen."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

from nimburion.core.errors import NimburionError

_FIRST = 0.001
_LONGEST = 0.05
_PATIENCE = 60.0
"""Seconds after which a transaction is taken for rolled back; its jobs are found by a poll then."""

Look = Callable[[list[str]], Awaitable[Collection[str]]]
"""Which of these job ids are to be seen by everybody."""
Ring = Callable[[Collection[str]], None]


class Watch:
    """The jobs of open transactions, and the queues to ring for each. For the loop's thread."""

    def __init__(
        self,
        look: Look,
        ring: Ring,
        *,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._look = look
        self._ring = ring
        self._pause = pause
        self._open: dict[str, tuple[float, Collection[str]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._interval = _FIRST

    def add(self, job_id: str, queues: Collection[str]) -> None:
        """Ring these queues once this job is to be seen."""
        self._open[job_id] = (asyncio.get_running_loop().time() + _PATIENCE, queues)
        self._interval = _FIRST
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._watch(), name="nimburion-commits")

    async def close(self) -> None:
        """Look a last time."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self.look()
            self._open.clear()

    async def look(self) -> None:
        """Ring for what is committed by now. A look that fails is tried again."""
        if not self._open:
            return
        with suppress(NimburionError):
            for job_id in await self._look(list(self._open)):
                _, queues = self._open.pop(job_id, (0.0, ()))
                self._ring(queues)

    async def _watch(self) -> None:
        while self._open:
            await self._pause(self._interval)
            self._interval = min(1.5 * self._interval, _LONGEST)
            await self.look()
            now = asyncio.get_running_loop().time()
            for job_id in [one for one, (until, _) in self._open.items() if until < now]:
                del self._open[job_id]
