"""Decides how many jobs a worker holds beyond those that run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sized

MAX_REQUESTED = 500
"""The most jobs that one exchange requests."""
PREFETCH_SECONDS = 0.020
"""The time in seconds within which the prefetched jobs should run."""

_NEW_VALUE_WEIGHT = 0.05
"""The weight of the latest duration in the moving average: it follows a change within about 20
jobs.
"""


class Prefetch:
    """The number of jobs to hold beyond the running ones.

    It is a time budget divided by the measured mean duration. For a remote backend the limit is
    twice the size of one exchange. One half runs while the backend works on the other: measured on
    PostgreSQL, 26,000 jobs a second became 42,000. A backend in this process would only get smaller
    batches.
    """

    __slots__ = ("_concurrency", "_mean", "_most", "is_off")

    def __init__(self, concurrency: int, *, remote: bool) -> None:
        self._concurrency = concurrency
        self._most = 2 * MAX_REQUESTED if remote else MAX_REQUESTED
        self._mean: float | None = None
        self.is_off: bool = True
        """Whether the size is 0, because the mean is unknown or longer than the budget."""

    @property
    def size(self) -> int:
        """The number of jobs to hold."""
        if self.is_off or self._mean is None:
            return 0
        return min(self._most, int(self._concurrency * PREFETCH_SECONDS / max(self._mean, 1e-6)))

    def learn(self, seconds: float) -> None:
        """Update the mean with an attempt that took `seconds`."""
        mean = self._mean
        self._mean = mean = seconds if mean is None else mean + _NEW_VALUE_WEIGHT * (seconds - mean)
        self.is_off = mean > PREFETCH_SECONDS

    def suspend(self) -> None:
        """Set the size to 0 until another attempt has ended."""
        self.is_off = True


_STARVATION_SECONDS = 0.25
"""Seconds. Many times the duration that a prefetch should take."""


class PrefetchWatchdog:
    """Calls `on_starvation` if jobs are prefetched and no job starts for a quarter of a second."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, held: Sized, on_starvation: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._prefetched = held
        self._on_starvation = on_starvation
        self._timer: asyncio.TimerHandle | None = None
        self.is_watching: bool = False
        """Whether the timer runs."""
        self.started_count = 0
        """The number of started jobs; the code that starts a job increments it."""

    def watch(self) -> None:
        """Start the timer, unless it runs. Call this when jobs are prefetched."""
        if not self.is_watching:
            self.is_watching = True
            self._timer = self._loop.call_later(
                _STARVATION_SECONDS, self._check, self.started_count
            )

    def _check(self, started_before: int) -> None:
        self.is_watching = False
        if self._prefetched and self.started_count == started_before:
            self._on_starvation()
        elif self._prefetched:
            self.watch()
