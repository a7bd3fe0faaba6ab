"""Periodic maintenance: rescue the jobs of dead workers, prune old jobs, warn about unserved ones.

The workers share it, without a leader and without a lock. Each heartbeat says when the next session
may expire, so no worker looks for dead ones before; then each looks, and the first finds the jobs.
Of n workers, each prunes one time in n, at random.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import cast

from nimburion.core.backend import Backend, Transactional
from nimburion.core.diagnosis.unserved import find_unserved, is_live
from nimburion.core.errors import BackendUnavailable, JobNotFound
from nimburion.core.events import Events, JobsRescued
from nimburion.core.job import Reason
from nimburion.core.maintenance import Rescued, Retention
from nimburion.core.metrics.counters import JobCounters
from nimburion.core.queries import JobFilter
from nimburion.core.service import Periodic
from nimburion.core.settings import Settings
from nimburion.core.timing.clock import Clock
from nimburion.jobs.statistics_writer import count_committed

_MAX_ROWS = 500
"""The most jobs that one backend operation processes, so that no operation blocks others for long.
"""
_SWEEPS_PER_TTL = 6
"""Rescue sweeps within one session TTL. Jobs of a dead worker wait for at most one sweep more."""
_UNSERVED_CHECK_INTERVAL = 60.0
"""The shortest time in seconds between two checks for names that no worker serves."""
_UNSERVED_LONGEST_INTERVAL = 600.0
"""The longest time in seconds until a worker looks again whether it has become the oldest one."""
_UNSERVED_MAX_TIME_SHARE = 0.01
"""The largest share of its time that the watch spends in backend calls."""
_UNSERVED_MAX_WARNINGS = 20
"""The most warnings in one check. A wrong deployment can leave thousands of names unserved."""
_log = logging.getLogger("nimburion.worker")


class Rescuer(Periodic):
    """Rescues the jobs of dead workers: looks six times per session TTL (every 5 s at 30 s) for
    whether a session may have expired.

    Each sweep consists of bounded steps.
    """

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        random: Random,
        events: Events,
        counters: JobCounters,
        *,
        ttl: float,
        max_lost: int,
        no_rescue_before: Callable[[], float],
        report_dead: Callable[[str], Awaitable[None]],
    ) -> None:
        super().__init__(clock, ttl / _SWEEPS_PER_TTL, random)
        self._backend = backend
        self._events = events
        self._counters = counters
        self._max_lost = max_lost
        self._no_rescue_before = no_rescue_before
        self._report_dead = report_dead
        self._unreported: deque[str] = deque()
        """The jobs that became dead letters here and are not reported yet, by id."""

    async def tick(self) -> None:
        """Rescue until no expired lease is left, then report the jobs that became dead letters.

        Jobs that cannot be reported because the backend does not answer are reported by the next
        tick.

        Rescues nothing while `no_rescue_before` is in the future: no session has expired. And after
        this worker's own silence, the other workers first get time for a heartbeat.
        """
        more = self.clock.monotonic() >= self._no_rescue_before()
        while more and not self.stopping.is_set():
            rescued = await self._backend.consuming.rescue(_MAX_ROWS, max_lost=self._max_lost)
            more = rescued.more
            counts = len(rescued.returned), len(rescued.failed), len(rescued.cancelled)
            if any(counts):
                self._log.warning(
                    "rescued from dead workers: %d back, %d failed, %d cancelled", *counts
                )
                self._events.emit(JobsRescued(*counts))
                self._unreported += rescued.failed
                await self._count(rescued)
        while self._unreported:  # last, because the application's hooks may be slow
            await self._report(self._unreported.popleft())

    async def _report(self, job_id: str) -> None:
        """Call the hooks for a job that became a dead letter, unless it was deleted since."""
        try:
            await self._report_dead(job_id)
        except JobNotFound:
            return
        except BackendUnavailable:
            self._unreported.appendleft(job_id)
            raise

    async def _count(self, rescued: Rescued) -> None:
        """Count the rescued jobs by queue and name; read both from the backend."""
        ids = [*rescued.returned, *rescued.failed, *rescued.cancelled]
        failed = set(rescued.failed)
        page = await self._backend.reads.list_jobs(JobFilter(ids=tuple(ids)), limit=len(ids))
        for job in page.jobs:
            lane = self._counters.get_lane(job.queue, job.name)
            lane.rescued += 1
            if job.id in failed:
                lane.count_dead_letter(Reason.LOST)


_PRUNE_INTERVAL = 60.0
"""Seconds between two prunes."""
_UNCOUNTED_SECONDS = 60.0
"""Seconds after an enqueue for which its count is left to the process that enqueued."""


def make_retention(settings: Settings) -> Retention:
    """Return the retention that the settings define."""
    return Retention(
        completed=settings.keep_completed,
        completed_max=settings.keep_completed_max,
        failed=settings.keep_failed,
        results=settings.keep_results,
        open_flows=settings.keep_open_flows,
    )


class Pruner(Periodic):
    """Prunes old jobs and results about once a minute.

    It also counts jobs that callers' transactions committed and that the processes which enqueued
    them have not counted, for example because they have ended.
    """

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        random: Random,
        settings: Settings,
        counters: JobCounters,
        *,
        count_workers: Callable[[], int] = lambda: 1,
    ) -> None:
        super().__init__(clock, _PRUNE_INTERVAL, random, jitter=0.5, count_workers=count_workers)
        self._backend = backend
        self._keep = make_retention(settings)
        self._counters = counters

    async def tick(self) -> None:
        """Prune in bounded steps until nothing is left to prune, then count."""
        while not self.stopping.is_set():
            if await self._backend.maintenance.prune(self._keep, _MAX_ROWS) < _MAX_ROWS:
                break
        if self._backend.capabilities.supports_transactions:
            producing = cast("Transactional", self._backend.producing)
            await count_committed(producing, self._counters, min_age=_UNCOUNTED_SECONDS)


class UnservedWatch(Periodic):
    """Checks about once a minute, and warns once for each queue and name.

    Only the worker with the oldest live session counts the jobs. The others just read the sessions:
    a worker with n older ones does so every n + 1 minutes, up to ten. Slow counts make the checks
    less frequent.
    """

    def __init__(
        self, backend: Backend, clock: Clock, random: Random, own_session: Callable[[], str]
    ) -> None:
        super().__init__(clock, _UNSERVED_CHECK_INTERVAL, random, jitter=0.5)
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
            for jobs in new[:_UNSERVED_MAX_WARNINGS]:
                _log.warning(
                    "%s. Start a worker that serves it, or correct the name or the queue",
                    jobs.describe(),
                    extra={"queue": jobs.queue, "job_name": jobs.name},
                )
            if len(new) > _UNSERVED_MAX_WARNINGS:
                more = len(new) - _UNSERVED_MAX_WARNINGS
                _log.warning("%d more like this; `nimburion queues list` shows them", more)
        took = self.clock.monotonic() - began
        pause = min(_UNSERVED_CHECK_INTERVAL * (1 + older_count), _UNSERVED_LONGEST_INTERVAL)
        self.interval: float = max(pause, took / _UNSERVED_MAX_TIME_SHARE)
