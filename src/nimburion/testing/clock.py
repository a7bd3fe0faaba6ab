"""A fake clock that only the test advances."""

from __future__ import annotations

import asyncio
import threading
from heapq import heappop, heappush

from nimburion.core.timing.durations import DURATION_FORMS, Duration, read_seconds

_START = 1_750_000_000.0
_BOOTED = 1_000.0


class FakeClock:
    """A fake clock: `now` and `monotonic` stay constant until `advance`.

    `advance` wakes every sleeper whose time has passed. It returns before the sleepers run, so
    yield to the event loop afterwards (`await asyncio.sleep(0)`).

    >>> clock = FakeClock()
    >>> prepare = clock.now()
    >>> clock.advance(90)
    >>> clock.now() - prepare
    90.0
    """

    def __init__(self, start: float = _START) -> None:
        self._now = start
        self._monotonic = _BOOTED
        self._lock = threading.RLock()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._count = 0

    def now(self) -> float:
        """Return the wall time in epoch seconds."""
        return self._now

    def monotonic(self) -> float:
        """Return the monotonic time: seconds since the host booted."""
        return self._monotonic

    def advance(self, duration: Duration) -> None:
        """Advance both clocks and wake the sleepers whose time has passed.

        `duration` is a number of seconds, a timedelta, or a text like `"3d"` or `"1h30m"`.
        """
        seconds = read_seconds(duration)
        if seconds is None:
            raise ValueError(f"advance takes {DURATION_FORMS}, not {duration!r}")
        if seconds < 0:
            raise ValueError("time does not go backwards; step_wall moves the wall clock alone")
        with self._lock:
            self._now += seconds
            self._monotonic += seconds
            while self._sleepers and self._sleepers[0][0] <= self._monotonic:
                _, _, waiter = heappop(self._sleepers)
                if not waiter.get_loop().is_closed():
                    waiter.get_loop().call_soon_threadsafe(_wake, waiter)

    def advance_to(self, now: float) -> None:
        """Advance both clocks until the wall clock shows `now`, in epoch seconds."""
        self.advance(now - self._now)

    def step_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an operator or NTP does. The monotonic clock
        does not change."""
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        """Sleep until the clock has advanced by `seconds`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._count += 1
            heappush(self._sleepers, (self._monotonic + seconds, self._count, waiter))
        await waiter

    @property
    def sleepers(self) -> int:
        """The number of pending calls of `sleep`."""
        with self._lock:
            return sum(not waiter.done() for _, _, waiter in self._sleepers)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
