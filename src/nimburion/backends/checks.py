"""What the health checks of the backends share: measure a call, write a size."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable

from nimburion.core.clock import Clock

PINGS = 20
"""Calls that `measure_round_trip` makes."""
SLOW_ROUND_TRIP = 0.005
MAX_CLOCK_OFFSET = 1.0
"""Seconds that the clock of a server may differ from the clock of this host."""

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


async def measure_seconds(call: Callable[[], Awaitable[object]], clock: Clock) -> float:
    """Return the seconds that a call takes."""
    began = clock.monotonic()
    await call()
    return clock.monotonic() - began


async def measure_round_trip(ping: Callable[[], Awaitable[object]], clock: Clock) -> float:
    """Return the median of the seconds that `PINGS` calls take."""
    return statistics.median([await measure_seconds(ping, clock) for _ in range(PINGS)])


def format_size(count: int) -> str:
    """Bytes as people read them.

    >>> format_size(12_897_484)
    '12.3 MiB'
    """
    for unit, length in (("GiB", _GIB), ("MiB", _MIB), ("KiB", _KIB)):
        if count >= length:
            return f"{count / length:.1f} {unit}"
    return f"{count} bytes"
