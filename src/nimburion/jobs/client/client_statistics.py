"""What a client counts: its jobs, and its calls to the backend."""

from __future__ import annotations

from random import Random
from typing import cast

from nimburion.core.backend import Backend, Transactional
from nimburion.core.ids import Entropy, make_session_id
from nimburion.core.metrics.counters import CallCounters, JobCounters
from nimburion.core.metrics.statistics_recorder import StatisticsRecorder
from nimburion.core.outage_log import OutageLog
from nimburion.core.timing.clock import Clock
from nimburion.jobs.statistics_writer import StatisticsWriter, count_committed


class ClientStatistics:
    """The counters of a client, and the service that stores them in the backend.

    The metrics read the counters at any time. `start` begins to store them as statistics, on the
    event loop of the client; `finish` stores what is left.
    """

    __slots__ = (
        "_clock",
        "_entropy",
        "_handles",
        "_random",
        "_recorder",
        "calls",
        "enqueues_in_transactions",
        "jobs",
        "outage",
        "writer",
    )

    def __init__(self, clock: Clock, random: Random, entropy: Entropy) -> None:
        self.outage: OutageLog = OutageLog(clock)
        """The log of outages, shared by the client, its handles, its worker and its services."""
        self._clock = clock
        self._random = random
        self._entropy = entropy
        self.jobs: JobCounters = JobCounters()
        """What the client enqueued, and what the worker of its processor ran."""
        self.calls: CallCounters = CallCounters()
        """The calls to the backend of the client, and of the worker of its processor."""
        self.writer: StatisticsWriter | None = None
        """Stores the statistics; None until `start`."""
        self.enqueues_in_transactions: bool = False
        """Whether the client has enqueued in a caller's transaction. The backend counts these jobs,
        and the writer asks it which transactions have committed."""
        self._recorder = StatisticsRecorder(self.jobs)
        self._handles: list[ClientStatistics] = [self]

    def add_handle(self, other: ClientStatistics) -> None:
        """Let the metrics show what `other` counts too: a handle for another event loop."""
        self._handles.append(other)

    def list_job_counters(self) -> list[JobCounters]:
        """Return the job counters of the client and of its handles."""
        return [handle.jobs for handle in self._handles]

    def list_call_counters(self) -> list[CallCounters]:
        """Return the call counters of the client and of its handles."""
        return [handle.calls for handle in self._handles]

    async def start(self, backend: Backend) -> None:
        """Start to store what is counted. Call it on the event loop that opened the backend.

        The source is new each time: after a fork, two processes count.
        """
        self._recorder.begin()
        source = make_session_id(self._entropy)
        self.writer = StatisticsWriter(
            backend.consuming,
            self._clock,
            self._random,
            self._recorder,
            source=source,
            count_committed=lambda: self._count_committed(backend),
        )
        self.writer.outage = self.outage
        await self.writer.start()

    async def _count_committed(self, backend: Backend) -> None:
        if self.enqueues_in_transactions:
            await count_committed(cast("Transactional", backend.producing), self.jobs, min_age=0.0)

    def abandon(self) -> None:
        """Forget the writer of an event loop that has ended."""
        self.writer = None

    async def finish(self) -> None:
        """Store what is left, if the backend answers within a second, and stop."""
        writer, self.writer = self.writer, None
        if writer is not None:
            await writer.finish()
