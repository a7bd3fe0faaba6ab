"""Readings of the backend that all viewers of the dashboard share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError, NimburionError
from nimburion.core.queries import QueueInfo
from nimburion.core.session import LimitInfo, SessionInfo
from nimburion.core.text.escaping import escape_controls
from nimburion.core.timing.clock import Clock
from nimburion.server.dashboard.queue_counts import (
    COUNT_BUDGET,
    EXACT_AGE,
    fill_up_counts,
    is_complete,
)
from nimburion.server.dashboard.recent_statistics import RecentHour, RecentStatistics

T = TypeVar("T")

UPDATE_AGE = 0.9
"""The usual maximum age of a value: a bit less than the interval of live updates, so that each
update reads.
"""
READ_TIMEOUT = 2.0
"""Seconds after which a read counts as failed. The page then shows the last values."""
FIRST_READ_TIMEOUT = 10.0
"""The same while there are no values yet."""
SLOW_READ_TIMEOUT = 30.0
"""The same for reads in the background."""
SLOW_SECONDS = 0.05
"""A read that takes longer is repeated in the background: pages do not wait for it."""
SLOW_UPDATE_SECONDS = 0.5
"""The same for live updates, which nobody waits for: they show a new value at once."""
SLOW_MAX_AGE = 30.0
"""Seconds for which the value of a slow read is shown meanwhile."""
SLOW_MAX_AGE_FACTOR = 10.0
"""A value with a long maximum age is shown for this many times that age meanwhile."""
PAUSE_FACTOR = 5.0
"""After each read there is a pause of this many times its duration, so that a page keeps the
backend busy for a sixth of the time. Reads of more than 0.6 s keep it busy for longer, because of
`MAX_PAUSE`.
"""
MAX_PAUSE = 3.0
"""The longest such pause in seconds: an open page must not become old."""
BACKGROUND_PAUSE_FACTOR = 20.0
"""As `PAUSE_FACTOR`, for reads in the background, which no page waits for."""
FIRST_WAIT = 0.1
"""Seconds that a page waits for the first value of a slow read."""
MAX_STALENESS = 600.0
"""Seconds for which values are shown while the backend does not answer, or while nobody asks."""
MAX_LIVE_AGE = 5.0
"""Values with a longer maximum age do not count for the time of a page."""
UNUSED_SECONDS = 120.0
"""A value that nobody has asked for in this time is dropped when another one is added."""
MAX_ENTRIES = 200
"""The maximum number of values that are kept."""


class _Entry:
    """The latest value of one reading, and whether the last attempt to replace it failed."""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.value: Any = None
        self.read_at = -math.inf
        """When the value was read, on the monotonic clock."""
        self.at = 0.0
        """The same in epoch seconds."""
        self.tried_at = -math.inf
        """When the last attempt to read it started, on the monotonic clock."""
        self.problem: BackendError | TimeoutError | None = None
        self.seconds = 0.0
        """How long the last attempt took."""

    @property
    def pause(self) -> float:
        """The least seconds from the start of one attempt to that of the next: slow reads are
        repeated less often. After a failure there is no pause, so that the end of an outage is
        noticed soon.
        """
        if self.problem is not None:
            return 0.0
        return self.seconds + min(PAUSE_FACTOR * self.seconds, MAX_PAUSE)


class SharedReadings:
    """Values that were read from the backend, by key. Readers at the same time share one read.

    If a read fails, the last value is returned again, together with the problem.
    """

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self.backend: Backend = backend
        self.clock: Clock = clock
        self.count: int = 0
        """The number of reads of the backend so far."""
        self.recent: RecentStatistics = RecentStatistics(backend, clock)
        """The statistics of the last hour; call `PageReadings.read_hour` instead."""
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def entry_count(self) -> int:
        """The number of values that are kept."""
        return len(self._entries)

    @property
    def durations(self) -> dict[str, float]:
        """How long the latest read of each value took, in seconds."""
        return {key: entry.seconds for key, entry in self._entries.items()}

    async def read(
        self,
        key: str,
        read: Callable[[], Awaitable[object]],
        max_age: float,
        slow_seconds: float = SLOW_SECONDS,
    ) -> _Entry:
        """Return the entry of a key, with a value that is at most `max_age` seconds old.

        If the last read took `slow_seconds` or more, the old value is returned and replaced in the
        background.

        Raises the error of the read if it fails and no value is left.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = self._add_entry(key)
        if self._may_wait(entry, max_age, slow_seconds):
            self._refresh_later(entry, read, READ_TIMEOUT)
            return entry
        async with entry.lock:
            now = self.clock.monotonic()
            if now - entry.tried_at >= max(max_age, entry.pause):
                is_first = entry.read_at == -math.inf
                timeout = FIRST_READ_TIMEOUT if is_first else READ_TIMEOUT
                await self._refresh(entry, read, timeout)
            if entry.problem is not None and now - entry.read_at > MAX_STALENESS:
                raise entry.problem.with_traceback(None)
            return entry

    def peek(
        self, key: str, read: Callable[[], Awaitable[object]], max_age: float
    ) -> object | None:
        """Return the last value of a slow read; None before the first, and if it is older than
        `MAX_STALENESS`. If it is older than `max_age` seconds, it is read again in the background,
        and a failure is ignored. A read that takes very long is repeated less often.
        """
        entry = self._entries.get(key) or self._add_entry(key)
        pause = max(max_age, BACKGROUND_PAUSE_FACTOR * entry.seconds)
        now = self.clock.monotonic()
        if now - entry.tried_at >= pause:
            self._refresh_later(entry, read, SLOW_READ_TIMEOUT)
        value: object | None = entry.value
        return value if now - entry.read_at <= MAX_STALENESS else None

    async def wait_for_value(
        self, key: str, read: Callable[[], Awaitable[object]], max_age: float
    ) -> object | None:
        """Return what `peek` does, but wait for the first value for `FIRST_WAIT` seconds."""
        if self.peek(key, read, max_age) is None and self._tasks:
            await asyncio.wait(set(self._tasks), timeout=FIRST_WAIT)
        return self.peek(key, read, max_age)

    async def stop(self) -> None:
        """End the reads in the background."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expire(self) -> None:
        """Read every value again when it is needed next: something was changed."""
        for entry in self._entries.values():
            entry.tried_at = -math.inf

    def _expire_failed(self) -> None:
        """Repeat the reads that failed when they are needed next, however long they took."""
        for entry in self._entries.values():
            if entry.problem is not None:
                entry.tried_at = -math.inf

    def _may_wait(self, entry: _Entry, max_age: float, slow_seconds: float) -> bool:
        """Return whether a value is due to be replaced, but good enough until that is done: it
        takes long to read, and is not old.
        """
        now = self.clock.monotonic()
        return (
            math.isfinite(entry.tried_at)
            and now - entry.tried_at >= max(max_age, entry.pause)
            and now - entry.read_at <= max(SLOW_MAX_AGE, SLOW_MAX_AGE_FACTOR * max_age)
            and entry.seconds >= slow_seconds
            and entry.problem is None
        )

    def _refresh_later(
        self, entry: _Entry, read: Callable[[], Awaitable[object]], timeout: float
    ) -> None:
        """Replace a value in the background, unless that happens already."""

        async def refresh() -> None:
            async with entry.lock:
                try:
                    await self._refresh(entry, read, timeout)
                except NimburionError:
                    entry.seconds = 0.0  # the next page waits for the read, and reports the error

        if not entry.lock.locked():
            task = asyncio.create_task(refresh())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _refresh(
        self, entry: _Entry, read: Callable[[], Awaitable[object]], timeout: float
    ) -> None:
        self.count += 1
        started = self.clock.monotonic()
        try:
            async with asyncio.timeout(timeout):
                entry.value = await read()
        except (BackendError, TimeoutError) as error:
            entry.problem = error
        else:
            if entry.problem is not None:
                self._expire_failed()  # the backend answers again
            entry.problem, entry.read_at = None, self.clock.monotonic()
            entry.at = self.clock.now()
        entry.tried_at = started
        entry.seconds = self.clock.monotonic() - started

    def _add_entry(self, key: str) -> _Entry:
        """Add an entry. Those that nobody has asked for lately make room for it."""
        limit = self.clock.monotonic() - UNUSED_SECONDS
        known = self._entries
        for old in [old for old, entry in known.items() if -math.inf < entry.tried_at < limit]:
            del known[old]
        if len(known) >= MAX_ENTRIES:
            del known[min(known, key=lambda old: known[old].tried_at)]
        entry = known[key] = _Entry()
        return entry


class PageReadings:
    """The readings of one page: what it reads, how old that is, and what went wrong.

    Each method takes the maximum age of its value in seconds. The defaults keep ten viewers of one
    page below two reads a second.
    """

    def __init__(self, shared: SharedReadings, slow_seconds: float = SLOW_SECONDS) -> None:
        self._shared = shared
        self._slow_seconds = slow_seconds
        self._at = math.inf
        self.problem: str = ""
        """Why some values are old; empty if all are fresh."""
        self.precision: str = "at least"
        """The word before a number of waiting jobs that is marked as incomplete: `about` if it is
        from the last full count, else `at least`.
        """

    @property
    def at(self) -> float:
        """When the oldest value of the page was read, in epoch seconds."""
        return self._at if self._at < math.inf else self._shared.clock.now()

    @property
    def now(self) -> float:
        """The time of this process, in epoch seconds."""
        return self._shared.clock.now()

    @property
    def backend(self) -> Backend:
        """The backend, for the functions that `read` calls."""
        return self._shared.backend

    async def read(
        self, key: str, read: Callable[[], Awaitable[T]], max_age: float = UPDATE_AGE
    ) -> T:
        """Return what `read` returns, shared under a key.

        The key must hold every argument of the read. Raises `BackendError` or `TimeoutError` if the
        read fails and no value is left.
        """
        entry = await self._shared.read(key, read, max_age, self._slow_seconds)
        if max_age <= MAX_LIVE_AGE:
            self._at = min(self._at, entry.at)
        if entry.problem is not None:
            self.problem = describe_problem(entry.problem)
        return cast("T", entry.value)

    def peek(self, key: str, read: Callable[[], Awaitable[T]], max_age: float = 30.0) -> T | None:
        """Return the last value of a slow read, which happens in the background; None before the
        first, and if it is very old.
        """
        return cast("T | None", self._shared.peek(key, read, max_age))

    async def read_slowly(
        self, key: str, read: Callable[[], Awaitable[T]], max_age: float = 30.0
    ) -> T | None:
        """Return what `peek` does, but wait a moment for the first value."""
        return cast("T | None", await self._shared.wait_for_value(key, read, max_age))

    async def list_queues(self, max_age: float = UPDATE_AGE) -> list[QueueInfo]:
        """Return all queues with unfinished jobs, and the paused ones.

        Where very many jobs wait, the numbers that are marked as incomplete are those of the last
        full count, or at least as many as were counted.
        """
        counted = await self.read(
            "queues", lambda: self.backend.list_queues(budget=COUNT_BUDGET), max_age
        )
        if is_complete(counted):
            return counted
        last = self.peek("queues counted to the end", self.backend.list_queues, EXACT_AGE)
        if last is None:
            return counted
        self.precision = "about"
        return fill_up_counts(counted, last)

    async def list_sessions(self, max_age: float = 2.0) -> list[SessionInfo]:
        """Return the sessions of all workers."""
        return await self.read("sessions", self.backend.list_sessions, max_age)

    async def list_limits(self, max_age: float = 2.0) -> list[LimitInfo]:
        """Return all concurrency limits."""
        return await self.read("limits", self.backend.list_limits, max_age)

    async def read_hour(self, max_age: float = 10.0) -> RecentHour:
        """Return the statistics of the last hour by queue, minute by minute."""
        return await self.read("hour", self._shared.recent.read, max_age)


def describe_problem(error: Exception) -> str:
    """Return why a page shows old values, for people."""
    if isinstance(error, BackendError | TimeoutError):
        reason = str(error) or "no answer in time"
        text = f"The backend does not answer: {reason}. The page shows the last values and retries."
    else:
        reason = str(error)
        text = f"{reason[:1].upper()}{reason[1:]}. The page shows the last values."
    return escape_controls(text)[:500]
