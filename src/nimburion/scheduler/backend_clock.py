"""Estimate the backend's clock on this host.

Ticks follow the backend's clock, because all schedulers and all due times share it. The scheduler
reads it before the first tick, every five minutes, and after the host's wall clock was set. In
between, the estimate advances with the host's monotonic clock, which cannot be set.
"""

from __future__ import annotations

import logging

from nimburion.core.backend import Lifecycle
from nimburion.core.clock import Clock

_log = logging.getLogger("nimburion.scheduler")

_EACH = 300.0
_NOTEWORTHY = 0.01
_STEP = 0.5
_LOUD = 5.0


class BackendClock:
    """The host's clock, corrected to the time of the backend."""

    def __init__(self, clock: Clock, backend: Lifecycle) -> None:
        self._clock = clock
        self._backend = backend
        self._learned: float | None = None
        self._host_ahead = 0.0
        self._ahead = 0.0
        """Seconds by which the corrected wall clock is ahead of the host's monotonic clock."""

    def now(self) -> float:
        """Return the estimated backend time in epoch seconds; the host's time before the first
        `synchronize`."""
        if self._learned is None:
            return self._clock.now()
        return self._clock.monotonic() + self._ahead

    async def synchronize(self) -> None:
        """Read the backend's time when the last reading is out of date. Raises `BackendError`."""
        if not self._is_due():
            return
        sent = self._clock.now(), self._clock.monotonic()
        backend_time = await self._backend.now()
        answered = self._clock.monotonic()
        took = answered - sent[1]
        self._host_ahead = sent[0] - sent[1]
        off = backend_time - (sent[0] + took / 2) if backend_time else 0.0
        if abs(off) <= max(_NOTEWORTHY, took / 2):
            off = 0.0  # within the round-trip time: a handler may have blocked the loop
        self._warn(off)
        self._ahead = self._host_ahead + off
        self._learned = answered

    def _is_due(self) -> bool:
        now = self._clock.monotonic()
        if self._learned is None or now - self._learned >= _EACH:
            return True
        return abs(self._clock.now() - now - self._host_ahead) > _STEP

    def _warn(self, off: float) -> None:
        was_loud = abs(self._ahead - self._host_ahead) > _LOUD
        if abs(off) > _LOUD and not (was_loud and self._learned is not None):
            _log.warning(
                "the clock of this host is %.1f s off that of the backend; ticks follow the "
                "backend's",
                -off,
            )
