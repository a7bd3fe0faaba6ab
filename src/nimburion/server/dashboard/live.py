"""Live updates: fragments that are rendered once and sent to all viewers of the same page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING

import msgspec
from starlette.responses import Response

from nimburion.core.errors import NimburionError
from nimburion.core.timing.clock import Clock
from nimburion.server.dashboard.readings import describe_problem

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

_log = logging.getLogger("nimburion.server")

MAX_STREAMS = 100
"""The maximum number of streams. Further viewers poll."""
READS_PER_SECOND = 1.75
"""Reads of the backend in a second for all live updates together, on average: with more different
pages open, each is updated less often. Pages that are rendered together share what they read.
"""
READS_AT_ONCE = 3.0
"""Reads that may follow each other faster after a time with fewer."""
CHANNELS_PER_SECOND = 4.0
"""Pages that are rendered in a second, at most."""
SEND_TIMEOUT = 20.0
"""Seconds after which a client that reads nothing is disconnected. It polls then."""
TICK = 0.1
"""Seconds between two looks for pages to render."""
MAX_SILENCE = 2.0
"""Seconds within which each stream sends something, so that clients notice a dead server."""


class Fragment(msgspec.Struct, frozen=True):
    """The live part of a page."""

    html: str
    at: float
    """When the oldest of its values was read, in epoch seconds."""
    problem: str = ""
    """Why values are old; empty if all are fresh."""
    reads: int = 0
    """The reads of the backend that it has started."""
    pending: frozenset[asyncio.Task[None]] = frozenset()
    """Reads that will replace some of its values."""
    due_at: float = math.inf
    """When the first of its values may be read again, on the monotonic clock."""


STILL_HERE = b"event: alive\ndata: yes\n\n"
"""Sent when there is no news. It is an event, since the script of the page sees no comments: it
polls when it hears nothing.
"""

Render = Callable[[], Awaitable[Fragment]]


class _Channel:
    """The viewers of one page with the same query and rights, and what they see."""

    def __init__(self, render: Render, interval: float, due: float) -> None:
        self.render: Render = render
        self.interval: float = interval
        self.due: float = due
        """When the next fragment is to be rendered, on the monotonic clock; minus infinity: now."""
        self.is_hastened: bool = False
        """Whether the next refresh shows what somebody has changed."""
        self.earliest: float = due
        """Before that time there is no further fragment, unless something was changed."""
        self.viewers: set[Viewer] = set()
        self.fragment: Fragment | None = None
        self.number: int = 0
        """Increases by one with each fragment."""
        self.changed_at: int = 0
        """The number of the latest fragment whose HTML differs from the one before it."""
        self.task: asyncio.Task[int] | None = None
        """The latest refresh."""

    @property
    def is_refreshing(self) -> bool:
        """Whether the next fragment is being rendered."""
        return self.task is not None and not self.task.done()

    def start_refresh(self) -> asyncio.Task[int]:
        """Render the fragment in a task of its own: a slow page does not delay the others. It
        returns the number of reads.
        """
        self.task = asyncio.create_task(self._refresh())
        return self.task

    async def _refresh(self) -> int:
        """Render the fragment, and wake the viewers."""
        try:
            fragment = await self.render()
        except (NimburionError, TimeoutError) as error:
            last = self.fragment
            html, at = ("", 0.0) if last is None else (last.html, last.at)
            fragment = Fragment(html, at, describe_problem(error), reads=1)
        except Exception:  # noqa: BLE001 - the other pages continue
            _log.exception("a live update failed")
            return 1
        self.number += 1
        if fragment.html and (self.fragment is None or fragment.html != self.fragment.html):
            self.changed_at = self.number
        self.fragment = fragment
        for viewer in self.viewers:
            viewer.news.set()
        if math.isfinite(fragment.due_at) and self.due > -math.inf:
            # Before that time the fragment would be the same, unless something was changed.
            earliest = self.due if fragment.reads else self.earliest
            self.due = max(earliest, fragment.due_at)
        for task in fragment.pending:
            task.add_done_callback(self._show_soon)
        return fragment.reads

    def _show_soon(self, _: asyncio.Task[None]) -> None:
        self.due = -math.inf


class Viewer:
    """One stream."""

    def __init__(self, channel: _Channel) -> None:
        self.news: asyncio.Event = asyncio.Event()
        self._channel = channel
        self._seen = 0

    def take_events(self) -> bytes:
        """Return what the viewer has not seen, as events; only the latest fragment counts."""
        self.news.clear()
        channel = self._channel
        fragment = channel.fragment
        if fragment is None or channel.number == self._seen:
            return STILL_HERE
        status = msgspec.json.encode({"at": fragment.at, "problem": fragment.problem}).decode()
        parts = [format_event(status, "status")]
        if channel.changed_at > self._seen:
            parts.insert(0, format_event(fragment.html))
        self._seen = channel.number
        return "".join(parts).encode()


def format_event(data: str, event: str = "") -> str:
    """Return a server-sent event."""
    name = [f"event: {event}"] if event else []
    return "\n".join([*name, *(f"data: {line}" for line in data.splitlines()), "", ""])


class LivePages:
    """All streams of this process. One task renders what they show; without viewers it ends."""

    def __init__(self, clock: Clock, max_streams: int = MAX_STREAMS) -> None:
        self.max_streams: int = max_streams
        """The maximum number of streams. With 0, all pages poll."""
        self._clock = clock
        self._channels: dict[Hashable, _Channel] = {}
        self._task: asyncio.Task[None] | None = None
        self._refreshing: set[asyncio.Task[int]] = set()
        self._reads_left = READS_AT_ONCE
        self._refilled_at = clock.monotonic()
        self._stopping = asyncio.Event()

    @property
    def viewer_count(self) -> int:
        """The number of streams."""
        return sum(len(channel.viewers) for channel in self._channels.values())

    @property
    def is_full(self) -> bool:
        """Whether further viewers must poll."""
        return self._stopping.is_set() or self.viewer_count >= self.max_streams

    def subscribe(self, key: Hashable, render: Render, interval: float) -> Viewer:
        """Return a viewer of the page with this key. Call `unsubscribe` when it leaves."""
        channel = self._channels.get(key)
        if channel is None:
            now = self._clock.monotonic()
            channel = self._channels[key] = _Channel(render, interval, now + interval)
        viewer = Viewer(channel)
        channel.viewers.add(viewer)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="nimburion-live-pages")
        return viewer

    def unsubscribe(self, key: Hashable, viewer: Viewer) -> None:
        """Remove a viewer, and the page if it was the last one."""
        channel = self._channels.get(key)
        if channel is not None:
            channel.viewers.discard(viewer)
            if not channel.viewers:
                del self._channels[key]

    def hasten(self) -> None:
        """Update every page now: something was changed.

        All values are read again. These reads do not count, as actions of people are rare: else
        the next event would be seen seconds later.
        """
        self._reads_left = READS_AT_ONCE
        for channel in self._channels.values():
            channel.due, channel.is_hastened = -math.inf, True

    async def start(self) -> None:
        """Accept viewers."""
        self._stopping.clear()

    async def stop(self) -> None:
        """End all streams. You can call it repeatedly."""
        self._stopping.set()
        for channel in self._channels.values():
            for viewer in channel.viewers:
                viewer.news.set()
        tasks = [*self._refreshing, *([] if self._task is None else [self._task])]
        self._task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def wait_for_news(self, viewer: Viewer) -> bool:
        """Return whether the stream continues, when there is news or after `MAX_SILENCE`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MAX_SILENCE):
                await viewer.news.wait()
        return not self._stopping.is_set()

    async def _run(self) -> None:
        while self._channels:
            now = self._clock.monotonic()
            self._refill_reads(now)
            if self._reads_left > 0:
                self._refresh_due(now)
            await self._clock.sleep(TICK)

    def _refill_reads(self, now: float) -> None:
        passed, self._refilled_at = now - self._refilled_at, now
        self._reads_left = min(READS_AT_ONCE, self._reads_left + READS_PER_SECOND * passed)

    def _refresh_due(self, now: float) -> None:
        slowest = len(self._channels) / CHANNELS_PER_SECOND
        for channel in self._channels.values():
            if channel.due <= now and not channel.is_refreshing:
                channel.earliest = now + slowest
                channel.due = max(channel.earliest, now + channel.interval - TICK / 2)
                task = channel.start_refresh()
                self._refreshing.add(task)
                task.add_done_callback(self._refreshing.discard)
                if not channel.is_hastened:
                    task.add_done_callback(self._count_reads)
                channel.is_hastened = False

    def _count_reads(self, task: asyncio.Task[int]) -> None:
        if not task.cancelled():
            self._reads_left -= task.result()


class LiveStream(Response):
    """An answer that sends the updates of a page until the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, pages: LivePages, key: Hashable, render: Render, interval: float) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store"})
        del self.headers["content-length"]
        self._pages = pages
        self._key = key
        self._render = render
        self._interval = interval

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        viewer = self._pages.subscribe(self._key, self._render, self._interval)
        leaving = asyncio.create_task(_wait_for_disconnect(receive))
        leaving.add_done_callback(lambda _: viewer.news.set())
        try:
            while await self._pages.wait_for_news(viewer) and not leaving.done():
                async with asyncio.timeout(SEND_TIMEOUT):
                    await send(_make_part(viewer.take_events(), more=True))
            await send(_make_part(b"", more=False))
        except (TimeoutError, OSError):
            return  # the client reads nothing, or has left
        finally:
            self._pages.unsubscribe(self._key, viewer)
            leaving.cancel()


def _make_part(content: bytes, *, more: bool) -> dict[str, object]:
    return {"type": "http.response.body", "body": content, "more_body": more}


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
