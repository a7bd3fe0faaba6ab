"""Takes back the jobs of dead workers. Every worker does it; no leader, no lock."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from nimburion.core.backend import Consuming
from nimburion.core.clock import Clock
from nimburion.core.events import Events, JobsRescued
from nimburion.core.service import Periodic

_LIMIT = 500
_SWEEPS_PER_TTL = 6


class Rescuer(Periodic):
    """Sweeps six times in a session's time to live (each 5 s at 30 s), in bounded steps."""

    def __init__(
        self,
        backend: Consuming,
        clock: Clock,
        random: Random,
        events: Events,
        *,
        ttl: float,
        max_lost: int,
        cautious_until: Callable[[], float],
    ) -> None:
        super().__init__(clock, ttl / _SWEEPS_PER_TTL, random)
        self._backend = backend
        self._events = events
        self._max_lost = max_lost
        self._cautious_until = cautious_until

    async def tick(self) -> None:
        """One sweep; none while this worker itself has just come back from silence."""
        if self.clock.monotonic() < self._cautious_until():
            return
        more = True
        while more and not self.stopping.is_set():
            rescued = await self._backend.rescue(_LIMIT, max_lost=self._max_lost)
            more = rescued.more
            counts = len(rescued.returned), len(rescued.failed), len(rescued.cancelled)
            if any(counts):
                self._log.warning(
                    "rescued from dead workers: %d back, %d failed, %d cancelled", *counts
                )
                self._events.emit(JobsRescued(*counts))
