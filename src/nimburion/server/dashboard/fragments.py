"""The live parts of pages, which all viewers of a page share."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Hashable

import msgspec

from nimburion.server.dashboard.readings import SharedReadings

SOONEST_POLL = 0.25
"""The least seconds between two polls of a page."""


class Fragment(msgspec.Struct, frozen=True, kw_only=True):
    """The live part of a page."""

    html: str
    at: float
    """When the oldest of its values was read, in epoch seconds."""
    problem: str = ""
    """Why values are old; empty if all are fresh."""
    due_at: float
    """When the first of its values may be read again, on the monotonic clock."""

    def compute_etag(self) -> str:
        """Return the entity tag of the HTML: a browser that has it needs no copy."""
        return f'"{hashlib.sha256(self.html.encode()).hexdigest()[:16]}"'


Render = Callable[[], Awaitable[Fragment]]


class _Rendering(msgspec.Struct, frozen=True):
    task: asyncio.Task[Fragment]
    version: int
    """The version of the readings when it began."""

    def is_valid(self, version: int, now: float) -> bool:
        """Return whether the fragment is being rendered, or is not due yet."""
        if self.version != version or self.task.cancelled():
            return False
        if not self.task.done():
            return True
        return self.task.exception() is None and now < self.task.result().due_at


class SharedFragments:
    """Renders each page once for all its viewers, until one of its values may be read again.

    After `SharedReadings.expire`, every page is rendered again.
    """

    def __init__(self, readings: SharedReadings) -> None:
        self._readings = readings
        self._renderings: dict[Hashable, _Rendering] = {}
        self._tasks: set[asyncio.Task[Fragment]] = set()

    async def get(self, key: Hashable, render: Render) -> Fragment:
        """Return the fragment of the page with this key. Raises what `render` does."""
        version, now = self._readings.version, self._readings.clock.monotonic()
        found = self._renderings.get(key)
        if found is None or not found.is_valid(version, now):
            self._drop_invalid(version, now)
            found = self._renderings[key] = _Rendering(self._start(render), version)
        return await asyncio.shield(found.task)

    def compute_wait(self, fragment: Fragment, longest: float) -> float:
        """Return after how many seconds a viewer is to ask again, at most `longest`."""
        wait = fragment.due_at - self._readings.clock.monotonic()
        return min(max(wait, SOONEST_POLL), longest)

    async def stop(self) -> None:
        """Stop rendering."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, render: Render) -> asyncio.Task[Fragment]:
        # A task, for a viewer who leaves must not end it for the others.
        task = asyncio.create_task(_render(render))
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Fragment]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for the task raises it

    def _drop_invalid(self, version: int, now: float) -> None:
        self._renderings = {
            key: one for key, one in self._renderings.items() if one.is_valid(version, now)
        }


async def _render(render: Render) -> Fragment:
    return await render()
