"""Clocks: all of nimburion reads the time and sleeps only through a `Clock` that it is given."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol


class Clock(Protocol):
    """A source of the current time, and of sleep.

    Backends use it for due times and session expiry, workers for the expiry of their leases. Tests
    pass `nimburion.testing.FakeClock`.
    """

    def now(self) -> float:
        """Return the wall-clock time in seconds since 1970-01-01 UTC. It may jump."""
        ...

    def monotonic(self) -> float:
        """Return the seconds since the host booted, including suspended time.

        It never jumps, and is the same for every process of a host.
        """
        ...

    async def sleep(self, seconds: float) -> None:
        """Return when `seconds` have passed on this clock."""
        ...


def _make_boot_clock() -> Callable[[], float]:
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic if boot is None else partial(time.clock_gettime, boot)


class SystemClock:
    """The clock of the host."""

    __slots__ = ()

    if TYPE_CHECKING:

        def now(self) -> float:
            """Return the wall-clock time."""
            ...

        def monotonic(self) -> float:
            """Return the boot time if the system has such a clock.

            Otherwise return the monotonic clock, which does not count suspended time.
            """
            ...

    else:  # each job reads these clocks several times: without a call of a Python function
        now = staticmethod(time.time)
        monotonic = staticmethod(_make_boot_clock())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
