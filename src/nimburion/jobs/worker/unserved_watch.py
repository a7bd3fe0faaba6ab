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
_LONGEST_INTERVAL = 600.0
"""The longest time in seconds until a worker looks again whether it has become the oldest one."""
_MAX_TIME_SHARE = 0.01
"""The largest share of its time that the watch spends in backend calls."""
_MAX_WARNINGS = 20
"""The most warnings in one check. A wrong deployment can leave thousands of names unserved."""
_log = logging.getLogger("nimburion.worker")


class UnservedWatch(Periodic):
    """Checks about once a minute, and warns once for each queue and name.

    Only the worker with the oldest live session counts the jobs. The others just read the sessions:
    a worker with n older ones does so every n + 1 minutes, up to ten. Slow counts make the checks
    less frequent.
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
        live = [session.id for session in sessions if is_live(session)]
        own = self._own_session()
        older_count = live.index(own) if own in live else len(live)
        if live[:1] == [own]:
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
        pause = min(_CHECK_INTERVAL * (1 + older_count), _LONGEST_INTERVAL)
        self.interval: float = max(pause, took / _MAX_TIME_SHARE)
