"""Stores the statistics of this process in the backend."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

from nimburion.core.backend import Consuming, Transactional
from nimburion.core.errors import BackendError
from nimburion.core.metrics.counters import JobCounters
from nimburion.core.metrics.statistics import WRITE_INTERVAL
from nimburion.core.metrics.statistics_recorder import StatisticsRecorder
from nimburion.core.service import Periodic
from nimburion.core.timing.clock import Clock

_FINISH_SECONDS = 1.0
"""Seconds that a write in progress and the last write may take when the client closes."""


async def count_committed(
    producing: Transactional, counters: JobCounters, *, min_age: float
) -> None:
    """Count the jobs of committed callers' transactions that no process has counted.

    Leaves out those that were enqueued less than `min_age` seconds ago.
    """
    while counts := await producing.take_enqueue_counts(min_age):
        counters.add_enqueued(counts)


class StatisticsWriter(Periodic):
    """Stores what a client counted, about every ten seconds and when the client closes.

    An error of the backend loses nothing: the next write stores absolute values.
    """

    def __init__(
        self,
        consuming: Consuming,
        clock: Clock,
        random: Random,
        recorder: StatisticsRecorder,
        *,
        source: str,
        count_committed: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(clock, WRITE_INTERVAL, random)
        self._consuming = consuming
        self._recorder = recorder
        self._source = source
        self._count_committed = count_committed

    async def tick(self) -> None:
        """Count what callers' transactions have committed, and store the rows that changed since
        the last write."""
        try:
            await self._count_committed()
        finally:
            await self._write()

    async def _write(self) -> None:
        self._recorder.record(self.clock.now())
        rows = self._recorder.take_changed()
        if not rows:
            return
        try:
            await self._consuming.put_statistics(self._source, rows)
        except BaseException:
            self._recorder.put_back(rows)
            raise

    async def finish(self) -> None:
        """Stop, and store what is left if the backend answers within a second.

        A write in progress that does not end in that time is cancelled.
        """
        try:
            async with asyncio.timeout(_FINISH_SECONDS):
                await self.stop()
                await self.tick()
        except (BackendError, TimeoutError) as error:
            self._log.debug("the last statistics were not stored (%s)", error)
