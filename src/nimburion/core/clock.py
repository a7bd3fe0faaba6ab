"""Time as an argument: nothing in nimburion reads a clock or sleeps but through one of these."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

_BOOT: int | None = getattr(time, "CLOCK_BOOTTIME", None)
"""Linux. Elsewhere the monotonic clock serves, which does not count suspended time."""


class Clock(Protocol):
    """What tells the time and lets it pass.

    Stores use it for due times and session expiry, workers for what they believe of their leases.
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

    __slots__ = ("monotonic", "now")

    def __init__(self) -> None:
        # Bound once: both are read several times for every job.
        self.now: Callable[[], float] = time.time
        self.monotonic: Callable[[], float] = (
            time.monotonic if _BOOT is None else partial(time.clock_gettime, _BOOT)
        )

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
