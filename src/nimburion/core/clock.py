"""Time as an argument: nothing in nimburion reads a clock or sleeps but through one of these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol


class Clock(Protocol):
    """What tells the time and lets it pass.

    Backends use it for due times and session expiry, workers for what they believe of their leases.
    Tests pass `nimburion.testing.FakeClock`.
    """

    def now(self) -> float:
        """Wall time: seconds since 1970-01-01 UTC. May step."""
        ...

    def monotonic(self) -> float:
        """Seconds since the host booted, suspended time included. Never steps, and is the same
        for every process of one host."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` have passed on this clock."""
        ...


class SystemClock:
    """The host's own clock."""

    __slots__ = ()

    def now(self) -> float:
        """Wall time."""
        return time.time()

    def monotonic(self) -> float:
        """Boot time where the system has it; else the monotonic clock, which does not count
        suspended time."""
        return _boot_seconds()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def _make_boot_clock() -> Callable[[], float]:
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boot is None else partial(time.clock_gettime, boot)


_boot_seconds = _make_boot_clock()
