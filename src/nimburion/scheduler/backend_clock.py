"""What the backend's clock shows, as far as it is known here.

The backend's time rules, because every scheduler and every due time has it in common. It is asked
for before the first tick, every five minutes, and when the host's clock was set; in between it
goes on with the host's monotonic clock, which nobody sets.
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
    """The host's clock, corrected by the backend's."""

    def __init__(self, clock: Clock, backend: Lifecycle) -> None:
        self._clock = clock
        self._backend = backend
        self._learned: float | None = None
        self._host_ahead = 0.0
        self._ahead = 0.0
        """Seconds that the clock on the wall, the host's and the backend's, is ahead of the
        monotonic one."""

    def now(self) -> float:
        """The backend's time, epoch seconds; the host's until `learn` was called."""
        if self._learned is None:
            return self._clock.now()
        return self._clock.monotonic() + self._ahead

    async def synchronize(self) -> None:
        """Ask the backend for its time, where that is due. `BackendError`."""
        if not self._is_due():
            return
        sent = self._clock.now(), self._clock.monotonic()
        told = await self._backend.now()
        answered = self._clock.monotonic()
        took = answered - sent[1]
        self._host_ahead = sent[0] - sent[1]
        off = told - (sent[0] + took / 2) if told else 0.0
        if abs(off) <= max(_NOTEWORTHY, took / 2):
            off = 0.0  # the time that the answer took explains it: a handler may block the loop
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
