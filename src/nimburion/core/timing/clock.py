"""Clocks: all of nimburion reads the time and sleeps only through a `Clock` that it is given.

Backends store times and spans as whole microseconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from nimburion.core.errors import Unstorable

MICRO = 1_000_000
"""Microseconds per second. All backends store whole microseconds, so equal times stay equal."""
_MAX_MICROS = 1 << 62


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

        async def sleep(self, seconds: float) -> None:
            """Return when `seconds` have passed."""
            ...

    else:  # each job reads these clocks several times: without a call of a Python function
        now = staticmethod(time.time)
        monotonic = staticmethod(_make_boot_clock())
        sleep = staticmethod(asyncio.sleep)


def to_micros(seconds: float) -> int:
    """Return seconds as whole microseconds, rounded.

    Raises `Unstorable` unless they are a time or a span that can be stored.

    >>> to_micros(1.5)
    1500000
    """
    try:
        whole = round(seconds * MICRO)
    except (ValueError, OverflowError):
        whole = _MAX_MICROS
    if not -_MAX_MICROS < whole < _MAX_MICROS:
        raise Unstorable(f"{seconds!r} s is no time or span that can be stored")
    return whole
