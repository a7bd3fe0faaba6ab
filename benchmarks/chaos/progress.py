"""How far a run is: the share of its jobs that have ended."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from benchmarks.chaos.fleet import Fleet
from nimburion.core.backend import Backend
from nimburion.core.errors import BackendUnavailable
from nimburion.core.job import FINISHED

COUNT_AGAIN = 0.2
"""Seconds between two looks at how many jobs have ended."""
MAX_STANDSTILL = 600.0
"""Seconds within which a job must end, and a worker must be ready to be killed."""


class Progress:
    """The share of all jobs that have ended, as the backend says. Workers that ended meanwhile are
    started again."""

    def __init__(self, backend: Backend, fleet: Fleet, jobs: int) -> None:
        self._backend = backend
        self._fleet = fleet
        self._jobs = jobs
        self._share = 0.0
        self.are_all_enqueued = False
        """Whether the producer has ended. A run that was lost may make fewer jobs than planned."""

    async def wait_for(self, share: float) -> None:
        """Wait until this share has ended. `TimeoutError` if nothing ends for `MAX_STANDSTILL`."""
        while self._share < share:
            async with asyncio.timeout(MAX_STANDSTILL):
                await self._wait_for_more()

    async def _wait_for_more(self) -> None:
        while True:
            self._fleet.restart_ended()
            with suppress(BackendUnavailable):
                counts = await self._backend.reads.count_jobs(budget=None)
                finished = sum(counts[state] for state in FINISHED)
                is_over = self.are_all_enqueued and finished == sum(counts.values())
                ended = 1.0 if is_over else finished / self._jobs
                if ended > self._share:
                    self._share = ended
                    return
            await asyncio.sleep(COUNT_AGAIN)
