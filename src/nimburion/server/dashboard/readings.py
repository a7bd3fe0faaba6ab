"""Readings of the backend that all viewers of the dashboard share."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import BackendError, NimburionError
from nimburion.core.job import State
from nimburion.core.limits import LimitInfo
from nimburion.core.queries import JobFilter, Page, QueueInfo
from nimburion.core.session import SessionInfo
from nimburion.core.text.escaping import escape_controls
from nimburion.core.timing.clock import Clock
from nimburion.server.dashboard.queue_counts import (
    EXACT_AGE,
    LIVE_COUNT_BUDGET,
    fill_up_counts,
    is_complete,
)
from nimburion.server.dashboard.recent_statistics import RecentHour, RecentStatistics
from nimburion.server.dashboard.statistics_window import StatisticsWindows

T = TypeVar("T")

COUNTED_QUEUES = "queues counted to the end"
"""The key of the last full count."""
UPDATE_AGE = 1.0
"""The usual maximum age of a value in seconds. An open page asks again when it is over."""
SIDE_AGE = 4.0
"""The maximum age of values that many pages show beside others, in seconds."""
READS_PER_SECOND = 2.0
"""The reads of the backend in a second for the live updates of all pages together, on average. If
the open pages need more, their values are read less often.
"""
READ_TIMEOUT = 2.0
"""Seconds after which a read counts as failed. The page then shows the last values."""
TIMEOUT_FACTOR = 5.0
"""A read that takes long may take this many times its last duration, up to `FIRST_READ_TIMEOUT`."""
FIRST_READ_TIMEOUT = 10.0
"""The timeout of a read while there is no value yet."""
SLOW_READ_TIMEOUT = 30.0
"""The timeout of reads in the background."""
SLOW_MAX_AGE = 30.0
"""Seconds for which the value of a slow read is shown meanwhile."""
SLOW_MAX_AGE_FACTOR = 10.0
"""A value with a long maximum age is shown for this many times that age meanwhile."""
MAX_PAUSE = 3.0
"""The longest pause after a read in seconds: an open page must not become old."""
BACKGROUND_PAUSE_FACTOR = 20.0
"""After each read in the background there is a pause of this many times its duration."""
MAX_STALENESS = 600.0
"""Seconds for which values are shown while the backend does not answer, or while nobody asks."""
MAX_LIVE_AGE = 5.0
"""Values with a longer maximum age do not count for the time of a page."""
MAX_RUNNING = 100
"""The maximum number of running jobs that pages show, the most recently enqueued ones."""
MAX_ENTRIES = 200
"""The maximum number of values that are kept. The one that was not read for longest is dropped."""


class ReadPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How long a reader waits for values, and how soon they are replaced."""

    slow_seconds: float
    """A read that takes this long or longer is repeated in the background: the reader gets the last
    value.
    """
    pause_factor: float
    """After each read there is a pause of this many times its duration, `MAX_PAUSE` at most."""
    wait: float = math.inf
    """Seconds that the reader waits for all its values together. It then gets the last ones, if
    they are not old.
    """
    first_wait: float = 0.1
    """Seconds that the reader waits for the first value of a slow read, which it can do without."""
    is_update: bool = False
    """Whether the reader is an open page, whose reads are bounded by `READS_PER_SECOND`."""


FOR_DATA = ReadPolicy(slow_seconds=0.05, pause_factor=5.0, first_wait=FIRST_READ_TIMEOUT)
"""For programs: they get all values. The backend is busy for a sixth of the time."""
FOR_PAGES = ReadPolicy(slow_seconds=0.05, pause_factor=5.0, wait=0.06)
"""For people who open a page: they see it at once, if need be without its values."""
FOR_UPDATES = ReadPolicy(slow_seconds=0.5, pause_factor=1.0, is_update=True)
"""For live updates: they show a new value soon."""


class NotReadYet(Exception):
    """A value is being read, and there is none to show meanwhile."""


class UpdateLoad:
    """The reads in a second that the open pages need."""

    def __init__(self) -> None:
        self._asked_at: dict[tuple[str, float], float] = {}

    def stretch_age(self, key: str, max_age: float, now: float) -> float:
        """Note that an open page shows a value. Return the maximum age of this value: it is longer
        than `max_age` while the open pages need more than `READS_PER_SECOND`.
        """
        self._asked_at[key, max_age] = now
        # A value that was not asked for in three times its age is on no open page any more.
        closed = [value for value, at in self._asked_at.items() if now - at > 3 * value[1]]
        for value in closed:
            del self._asked_at[value]
        load = sum(1 / age for _, age in self._asked_at)
        return max_age * max(1.0, load / READS_PER_SECOND)


class _Entry:
    """The latest value of one reading, and whether the last attempt to replace it failed."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        """The attempt that runs."""
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
        self.usual_seconds = 0.0
        """How long the last attempt took that did not fail."""

    @property
    def is_running(self) -> bool:
        """Whether the value is being read."""
        return self.task is not None and not self.task.done()

    @property
    def timeout(self) -> float:
        """The timeout of the next attempt, in seconds."""
        if self.read_at == -math.inf:
            return FIRST_READ_TIMEOUT
        return max(READ_TIMEOUT, min(TIMEOUT_FACTOR * self.usual_seconds, FIRST_READ_TIMEOUT))

    def find_due(self, max_age: float, pause_factor: float) -> float:
        """Return when the value is to be replaced, on the monotonic clock. Slow reads are repeated
        less often. After a failure there is no pause, so that the end of an outage is noticed soon.
        """
        pause = 0.0
        if self.problem is None:
            pause = self.seconds + min(pause_factor * self.seconds, MAX_PAUSE)
        return self.tried_at + max(max_age, pause)

    def is_usable(self, now: float, max_age: float) -> bool:
        """Return whether the value may be shown while it is replaced: it is not from before a
        change, and not old.
        """
        age = now - self.read_at
        is_expired = self.tried_at == -math.inf
        is_old = age > max(SLOW_MAX_AGE, SLOW_MAX_AGE_FACTOR * max_age)
        return self.problem is None and not is_expired and not is_old


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
        self.windows: StatisticsWindows = StatisticsWindows(backend)
        """The statistics of longer times. Read a window in `read` only: reads must not overlap."""
        self.load: UpdateLoad = UpdateLoad()
        self.version: int = 0
        """Increases by one each time that all values expire."""
        self._entries: dict[str, _Entry] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def durations(self) -> dict[str, float]:
        """How long the latest read of each value took, in seconds."""
        return {key: entry.seconds for key, entry in self._entries.items()}

    async def read(
        self,
        key: str,
        read: Callable[[], Awaitable[object]],
        max_age: float,
        policy: ReadPolicy = FOR_DATA,
    ) -> _Entry:
        """Return the entry of a key, with a value that is at most `max_age` seconds old, or the
        last one, as the policy says.

        Raises:
            NotReadYet: the policy says not to wait longer, and no value is left.
            BackendError: the read failed, and no value is left.
            TimeoutError: as `BackendError`.
        """
        entry = self._entries.get(key) or self._add_entry(key)
        factor, is_new = policy.pause_factor, False
        # A read that somebody had started may be from before a change; one of our own is not.
        while not is_new and entry.find_due(max_age, factor) <= self.clock.monotonic():
            is_usable = entry.is_usable(self.clock.monotonic(), max_age)
            is_new = not entry.is_running
            task = self._start(entry, read, entry.timeout)
            if is_usable and entry.seconds >= policy.slow_seconds:
                return entry
            timeout = None if policy.wait == math.inf else policy.wait
            done, _ = await asyncio.wait({task}, timeout=timeout)
            if done and not task.cancelled():
                task.result()
            elif is_usable:
                return entry
            elif entry.problem is None:
                raise NotReadYet
            else:
                break
        is_stale = self.clock.monotonic() - entry.read_at > MAX_STALENESS
        if entry.problem is not None and is_stale:
            raise entry.problem.with_traceback(None)
        return entry

    async def peek(
        self,
        key: str,
        read: Callable[[], Awaitable[object]],
        max_age: float,
        first_wait: float = 0.0,
    ) -> object | None:
        """Return the last value of a slow read; None before the first, and if it is older than
        `MAX_STALENESS`. If it is older than `max_age` seconds, it is read again in the background,
        and a failure is ignored. A read that takes very long is repeated less often. `first_wait`
        is how long to wait if there is no value, in seconds.
        """
        entry = self._entries.get(key) or self._add_entry(key)
        pause = max(max_age, BACKGROUND_PAUSE_FACTOR * entry.seconds)
        task = None
        if self.clock.monotonic() - entry.tried_at >= pause:
            task = self._start(entry, read, SLOW_READ_TIMEOUT)
        has_value = self.clock.monotonic() - entry.read_at <= MAX_STALENESS
        if task is not None and not has_value and first_wait > 0:
            await asyncio.wait({task}, timeout=first_wait)
            has_value = self.clock.monotonic() - entry.read_at <= MAX_STALENESS
        value: object | None = entry.value
        return value if has_value else None

    async def list_queues(self) -> list[QueueInfo]:
        """Return all queues as they are now. Numbers that are not complete are those of the last
        full count, which happens in the background, or as many as were counted.
        """
        counted = await self.backend.reads.list_queues()
        if is_complete(counted):
            return counted
        last = await self.peek(COUNTED_QUEUES, self.count_all_jobs, EXACT_AGE)
        return counted if last is None else fill_up_counts(counted, cast("list[QueueInfo]", last))

    async def count_all_jobs(self) -> list[QueueInfo]:
        """Read all queues, and count the jobs to the end."""
        return await self.backend.reads.list_queues(budget=None)

    async def stop(self) -> None:
        """End the reads that run."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def expire(self) -> None:
        """Read every value again when it is needed next: something was changed."""
        self.version += 1
        for entry in self._entries.values():
            entry.tried_at = -math.inf

    def _expire_failed(self) -> None:
        """Repeat the reads that failed when they are needed next, however long they took."""
        for entry in self._entries.values():
            if entry.problem is not None:
                entry.tried_at = -math.inf

    def _start(
        self,
        entry: _Entry,
        read: Callable[[], Awaitable[object]],
        timeout: float,
    ) -> asyncio.Task[None]:
        """Return the task that replaces a value; start it unless it runs already."""
        if entry.task is None or not entry.is_running:
            entry.task = task = asyncio.create_task(self._refresh(entry, read, timeout))
            self._tasks.add(task)
            task.add_done_callback(self._forget)
        return entry.task

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # who waits for the task raises it

    async def _refresh(
        self, entry: _Entry, read: Callable[[], Awaitable[object]], timeout: float
    ) -> None:
        self.count += 1
        version = self.version
        started = self.clock.monotonic()
        try:
            async with asyncio.timeout(timeout):
                entry.value = await read()
        except (BackendError, TimeoutError) as error:
            entry.problem = error
        except NimburionError:
            entry.seconds = 0.0  # the next page waits for the read, and reports the error
            raise
        else:
            if entry.problem is not None:
                self._expire_failed()  # the backend answers again
            entry.problem, entry.read_at = None, self.clock.monotonic()
            entry.at = self.clock.now()
            entry.usual_seconds = entry.read_at - started
        entry.seconds = self.clock.monotonic() - started
        # A value that was read while something was changed may be the old one.
        entry.tried_at = started if version == self.version else -math.inf

    def _add_entry(self, key: str) -> _Entry:
        known = self._entries
        if len(known) >= MAX_ENTRIES:
            del known[min(known, key=lambda old: known[old].tried_at)]
        entry = known[key] = _Entry()
        return entry


class PageReadings:
    """The readings of one page: what it reads, how old that is, and what went wrong.

    Each method takes the maximum age of its value in seconds.
    """

    def __init__(self, shared: SharedReadings, policy: ReadPolicy = FOR_DATA) -> None:
        self._shared = shared
        self._policy = policy
        self._at = math.inf
        self._wait_until = shared.clock.monotonic() + policy.wait
        self.due_at: float = math.inf
        """When the first of its values may be read again, on the monotonic clock."""
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

    @property
    def windows(self) -> StatisticsWindows:
        """The statistics of longer times, for the functions that `read` calls."""
        return self._shared.windows

    async def read(
        self, key: str, read: Callable[[], Awaitable[T]], max_age: float = UPDATE_AGE
    ) -> T:
        """Return what `read` returns, shared under a key.

        The key must hold every argument of the read. Raises what `SharedReadings.read` does.
        """
        policy = msgspec.structs.replace(self._policy, wait=self._find_wait())
        age = self._choose_age(key, max_age)
        entry = await self._shared.read(key, read, age, policy)
        self.due_at = min(self.due_at, entry.find_due(age, policy.pause_factor))
        if max_age <= MAX_LIVE_AGE:
            self._at = min(self._at, entry.at)
        if entry.problem is not None:
            self.problem = describe_problem(entry.problem)
        return cast("T", entry.value)

    def _choose_age(self, key: str, max_age: float) -> float:
        """Return the maximum age of a value for this reader."""
        if not self._policy.is_update:
            return max_age
        return self._shared.load.stretch_age(key, max_age, self._shared.clock.monotonic())

    def _find_wait(self) -> float:
        """Return how long the page still waits for its values, in seconds."""
        return max(0.0, self._wait_until - self._shared.clock.monotonic())

    async def peek(
        self,
        key: str,
        read: Callable[[], Awaitable[T]],
        max_age: float = 30.0,
        *,
        waits: bool = False,
    ) -> T | None:
        """Return the last value of a slow read, which happens in the background; None before the
        first, and if it is very old. With `waits`, wait for the first one as the policy says.
        """
        age = self._choose_age(key, max_age)
        first_wait = min(self._policy.first_wait, self._find_wait()) if waits else 0.0
        return cast("T | None", await self._shared.peek(key, read, age, first_wait))

    async def list_queues(self, max_age: float = UPDATE_AGE) -> list[QueueInfo]:
        """Return all queues with unfinished jobs, and the paused ones.

        Where very many jobs wait, the numbers that are marked as incomplete are those of the last
        full count, or at least as many as were counted.
        """
        counted = await self.read(
            "queues", lambda: self.backend.reads.list_queues(budget=LIVE_COUNT_BUDGET), max_age
        )
        if is_complete(counted):
            return counted
        last = await self.peek(COUNTED_QUEUES, self._shared.count_all_jobs, EXACT_AGE)
        if last is None:
            return counted
        self.precision = "about"
        return fill_up_counts(counted, last)

    async def list_sessions(self, max_age: float = SIDE_AGE) -> list[SessionInfo]:
        """Return the sessions of all workers."""
        return await self.read("sessions", self.backend.reads.list_sessions, max_age)

    async def list_limits(self, max_age: float = SIDE_AGE) -> list[LimitInfo]:
        """Return all limits with their fullest keys and their holders."""
        return await self.read("limits", self.backend.reads.list_limits, max_age)

    async def list_running(self, max_age: float = UPDATE_AGE) -> Page:
        """Return the jobs that run, at most `MAX_RUNNING`."""
        which = JobFilter(states=frozenset({State.PROCESSING}))
        return await self.read(
            "running", lambda: self.backend.reads.list_jobs(which, limit=MAX_RUNNING), max_age
        )

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
