"""Warns about waiting jobs that no live worker serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import Random

from nimburion.core.backend import Backend
from nimburion.core.diagnosis.unserved import find_unserved, is_live
from nimburion.core.service import Periodic
from nimburion.core.timing.clock import Clock

_CHECK_INTERVAL = 60.0
"""The shortest time in seconds between two checks."""
_MAX_TIME_SHARE = 0.01
"""The largest share of its time that the watch spends in backend calls."""
_MAX_WARNINGS = 20
"""The most warnings in one check. A wrong deployment can leave thousands of names unserved."""
_log = logging.getLogger("nimburion.worker")


class UnservedWatch(Periodic):
    """Checks about once a minute, and warns once for each queue and name.

    Only the worker with the oldest live session counts the jobs; the others just read the sessions.
    More sessions and slower counts make the checks less frequent.
    """

    def __init__(
        self, backend: Backend, clock: Clock, random: Random, own_session: Callable[[], str]
    ) -> None:
        super().__init__(clock, _CHECK_INTERVAL, random, jitter=0.5)
        self._backend = backend
        self._own_session = own_session
        self._reported: set[tuple[str, str]] = set()

    async def tick(self) -> None:
        """Check once, and adapt the interval."""
        began = self.clock.monotonic()
        sessions = await self._backend.reads.list_sessions()
        oldest = next(filter(is_live, sessions), None)
        if oldest is not None and oldest.id == self._own_session():
            found = find_unserved(await self._backend.reads.list_queues(), sessions)
            new = [jobs for jobs in found if (jobs.queue, jobs.name) not in self._reported]
            self._reported = {(jobs.queue, jobs.name) for jobs in found}
            for jobs in new[:_MAX_WARNINGS]:
                _log.warning(
                    "%s. Start a worker that serves it, or correct the name or the queue",
                    jobs.describe(),
                    extra={"queue": jobs.queue, "job_name": jobs.name},
                )
            if len(new) > _MAX_WARNINGS:
                more = len(new) - _MAX_WARNINGS
                _log.warning("%d more like this; `nimburion queues list` shows them", more)
        took = self.clock.monotonic() - began
        self.interval: float = max(_CHECK_INTERVAL + len(sessions), took / _MAX_TIME_SHARE)
