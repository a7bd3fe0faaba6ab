"""Statistics of a time that ends now, of which only the latest intervals are read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Literal, NamedTuple

from nimburion.core.backend import Backend
from nimburion.core.metrics.statistics import MERGE_AFTER, STEPS, Counters, Statistics

ROWS_AT_ONCE = 500
"""The rows that are added up before other tasks run."""
READ_AT_ONCE = 8
"""The intervals that one read of the backend returns: to decode many rows holds other tasks up."""
MAX_COUNTERS = 50_000
"""The most counters that are kept; with more, the whole time is read each time."""


class WindowSpan(NamedTuple):
    """The time that a window shows, in epoch seconds."""

    since: int
    until: int
    """The end of the present interval."""


class StatisticsWindow:
    """Reads the statistics of the last intervals, and adds them up by queue or by name.

    Args:
        backend: where to read.
        step: the length of an interval in seconds.
        count: the number of intervals.
        by: what to add up by.
        queue: only jobs of this queue.
        name: only jobs of this name.
    """

    def __init__(
        self,
        backend: Backend,
        step: int,
        count: int,
        *,
        by: Literal["queue", "name"] = "queue",
        queue: str | None = None,
        name: str | None = None,
    ) -> None:
        self._backend = backend
        self._step = step
        self._count = count
        self._by = by
        self._queue = queue
        self._name = name
        self._stored_step = max(one for one in STEPS if one <= step)
        self._intervals: dict[int, dict[str, Counters]] = {}
        self.totals: dict[int, Counters] = {}
        """The sums of each interval, by its start; intervals in which nothing happened are left
        out.
        """
        self._read_until = 0

    async def read(self, now: float) -> WindowSpan:
        """Read the statistics up to now. The first call reads all of the time.

        Calls must not overlap. After an error the window is as before the call.
        """
        step = self._step
        until = int(now // step + 1) * step
        since = until - self._count * step
        # Processes store the rows of an interval until this long after its end.
        settled = self._read_until - MERGE_AFTER / 2 - self._stored_step
        start = int(max(since, settled) // step * step)
        read: dict[int, dict[str, Counters]] = {}
        for first in range(start, until, READ_AT_ONCE * step):
            last = min(first + READ_AT_ONCE * step, until)
            rows = await self._backend.reads.list_statistics(
                first, last, self._stored_step, queue=self._queue, name=self._name
            )
            await self._add_rows(read, rows)
        kept = [one for one in self._intervals if since <= one < start]
        self._intervals = {**{one: self._intervals[one] for one in kept}, **read}
        self.totals = {
            **{one: self.totals[one] for one in kept},
            **{one: add_up(sums.values()) for one, sums in read.items()},
        }
        is_small = sum(map(len, self._intervals.values())) <= MAX_COUNTERS
        self._read_until = until if is_small else 0
        return WindowSpan(since, until)

    async def iterate(self) -> AsyncIterator[tuple[int, str, Counters]]:
        """Yield the start of an interval, a queue or name, and what happened; zeros are left out.
        The sums over all queues or names are in `totals`.

        Other tasks run from time to time: there may be many.
        """
        number = 0
        for start, sums in self._intervals.items():
            for key, counters in sums.items():
                yield start, key, counters
                number += 1
                if number % ROWS_AT_ONCE == 0:
                    await asyncio.sleep(0)

    async def _add_rows(
        self, sums: dict[int, dict[str, Counters]], rows: Iterable[Statistics]
    ) -> None:
        for number, row in enumerate(rows, start=1):
            key = row.queue if self._by == "queue" else row.name
            interval = sums.setdefault(row.start // self._step * self._step, {})
            interval.setdefault(key, Counters()).add(row.counters)
            if number % ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)


def add_up(counters: Iterable[Counters]) -> Counters:
    """Return the sums of counters."""
    sums = Counters()
    for one in counters:
        sums.add(one)
    return sums


class StatisticsWindows:
    """The windows of the pages that were read last."""

    MAX_WINDOWS = 8

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._windows: dict[tuple[object, ...], StatisticsWindow] = {}

    def get(
        self,
        step: int,
        count: int,
        *,
        by: Literal["queue", "name"],
        queue: str | None,
        name: str | None,
    ) -> StatisticsWindow:
        """Return the window of these statistics."""
        key = (step, count, by, queue, name)
        window = self._windows.pop(key, None)
        if window is None:
            window = StatisticsWindow(self._backend, step, count, by=by, queue=queue, name=name)
        self._windows[key] = window  # the last one
        while len(self._windows) > self.MAX_WINDOWS:
            del self._windows[next(iter(self._windows))]
        return window
