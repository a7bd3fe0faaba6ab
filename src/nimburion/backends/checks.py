"""Helpers of the backends' health checks: measure a call, format a size."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable

from nimburion.core.timing.clock import Clock

PINGS = 20
"""The number of calls that `measure_round_trip` makes."""
SLOW_ROUND_TRIP = 0.005
MAX_CLOCK_OFFSET = 1.0
"""The maximum difference between the clocks of a server and this host, in seconds."""

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


async def measure_seconds(call: Callable[[], Awaitable[object]], clock: Clock) -> float:
    """Return the duration of a call in seconds."""
    began = clock.monotonic()
    await call()
    return clock.monotonic() - began


async def measure_round_trip(ping: Callable[[], Awaitable[object]], clock: Clock) -> float:
    """Return the median duration of `PINGS` calls in seconds."""
    return statistics.median([await measure_seconds(ping, clock) for _ in range(PINGS)])


def format_size(count: int) -> str:
    """Return a number of bytes as readable text.

    >>> format_size(12_897_484)
    '12.3 MiB'
    """
    for unit, length in (("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} bytes"
