"""Estimate the backend's clock on this host.

Ticks follow the backend's clock, because all schedulers and all due times share it. The scheduler
reads it before the first tick, every five minutes, and after the host's wall clock was set. In
between, the estimate advances with the host's monotonic clock, which cannot be set.
"""

from __future__ import annotations

import logging

from nimburion.core.backend import Lifecycle
from nimburion.core.timing.clock import Clock

_log = logging.getLogger("nimburion.scheduler")

_READ_INTERVAL = 300.0
"""Seconds between two readings of the backend's clock.

The host's clock drifts less than 0.1 s meanwhile.
"""
_MIN_CORRECTION = 0.01
"""Seconds. A smaller difference may come from the measurement, and is not corrected."""
_MAX_CLOCK_CHANGE = 0.5
"""Seconds.

A larger change between the wall clock and the monotonic clock means that the wall clock was set.
"""
_MAX_UNREPORTED_DIFFERENCE = 5.0
"""Seconds.

A larger difference between host and backend is logged, because it confuses readers of logs.
"""


class BackendClock:
    """The host's clock, corrected to the time of the backend."""

    def __init__(self, clock: Clock, backend: Lifecycle) -> None:
        self._clock = clock
        self._backend = backend
        self._read_at: float | None = None
        """Monotonic time of the last reading; None before the first."""
        self._host_offset = 0.0
        """The host's wall clock minus its monotonic clock, in seconds, at the last reading."""
        self._offset = 0.0
        """The backend's clock minus the host's monotonic clock, in seconds."""

    def now(self) -> float:
        """Return the estimated backend time in epoch seconds.

        Before the first `synchronize`, return the host's time.
        """
        if self._read_at is None:
            return self._clock.now()
        return self._clock.monotonic() + self._offset

    async def synchronize(self) -> None:
        """Read the backend's time when the last reading is out of date. Raises `BackendError`."""
        if not self._is_due():
            return
        sent = self._clock.now(), self._clock.monotonic()
        backend_time = await self._backend.now()
        answered = self._clock.monotonic()
        round_trip = answered - sent[1]
        self._host_offset = sent[0] - sent[1]
        difference = backend_time - (sent[0] + round_trip / 2) if backend_time else 0.0
        if abs(difference) <= max(_MIN_CORRECTION, round_trip / 2):
            difference = 0.0  # the round trip alone can cause it, if a handler blocked the loop
        self._log_difference(difference)
        self._offset = self._host_offset + difference
        self._read_at = answered

    def _is_due(self) -> bool:
        now = self._clock.monotonic()
        if self._read_at is None or now - self._read_at >= _READ_INTERVAL:
            return True
        return abs(self._clock.now() - now - self._host_offset) > _MAX_CLOCK_CHANGE

    def _log_difference(self, difference: float) -> None:
        """Log a large difference between the clocks, unless the last reading logged it."""
        was_large = abs(self._offset - self._host_offset) > _MAX_UNREPORTED_DIFFERENCE
        is_logged = was_large and self._read_at is not None
        if abs(difference) > _MAX_UNREPORTED_DIFFERENCE and not is_logged:
            _log.warning(
                "the clock of this host differs from the backend's clock by %.1f s; ticks follow "
                "the backend's clock",
                -difference,
            )
