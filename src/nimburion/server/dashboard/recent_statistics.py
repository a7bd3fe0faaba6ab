"""The statistics of the last hour by queue, of which only the latest minutes are read again."""

from __future__ import annotations

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.metrics.statistics import Counters
from nimburion.core.timing.clock import Clock
from nimburion.server.dashboard.statistics_window import StatisticsWindow

STEP = 60
"""The length of an interval in seconds."""
INTERVALS = 60
"""The number of intervals that are kept."""


class QueueHour(msgspec.Struct, kw_only=True):
    """What happened to the jobs of a queue in the last hour."""

    counters: Counters = msgspec.field(default_factory=Counters)
    """The sums of the hour."""
    enqueued: list[float] = msgspec.field(default_factory=lambda: [0.0] * INTERVALS)
    """One number for each minute, as in the next three; the last minute is not over."""
    completed: list[float] = msgspec.field(default_factory=lambda: [0.0] * INTERVALS)
    failed: list[float] = msgspec.field(default_factory=lambda: [0.0] * INTERVALS)
    """Jobs that became dead letters."""
    retried: list[float] = msgspec.field(default_factory=lambda: [0.0] * INTERVALS)

    def add(self, index: int, counters: Counters) -> None:
        """Add the counters of one minute."""
        self.counters.add(counters)
        self.enqueued[index] += counters.enqueued
        self.completed[index] += counters.completed
        self.failed[index] += counters.failed
        self.retried[index] += counters.retried


class RecentHour(msgspec.Struct, frozen=True, kw_only=True):
    """The statistics of the last hour."""

    since: float
    """The start of the first minute, in epoch seconds."""
    until: float
    """The end of the present minute."""
    now: float
    """When the statistics were read."""
    queues: dict[str, QueueHour]
    total: QueueHour

    def get_queue(self, queue: str) -> QueueHour:
        """Return the statistics of one queue; zeros if nothing happened."""
        return self.queues.get(queue) or QueueHour()

    def compute_rate(self, values: list[float], minutes: int = 5) -> float:
        """Return the mean of the last values a minute; the present minute counts in part."""
        passed = minutes - 1 + max(self.now - (self.until - STEP), 1.0) / STEP
        return sum(values[-minutes:]) / passed


class RecentStatistics:
    """Reads the statistics of the last hour, and adds up the names of each queue."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._clock = clock
        self._window = StatisticsWindow(backend, STEP, INTERVALS)

    async def read(self) -> RecentHour:
        """Return the statistics of the last hour. The first call reads all of it."""
        now = self._clock.now()
        since, until = await self._window.read(now)
        hour = RecentHour(since=since, until=until, now=now, queues={}, total=QueueHour())
        async for start, queue, counters in self._window.iterate():
            index = (start - since) // STEP
            hour.queues.setdefault(queue, QueueHour()).add(index, counters)
        for start, counters in self._window.totals.items():
            hour.total.add((start - since) // STEP, counters)
        return hour
