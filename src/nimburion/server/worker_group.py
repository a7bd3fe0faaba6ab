"""Several worker processes behind one management server."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from nimburion.jobs.worker.health import Health
from nimburion.telemetry.families import Family


class WorkerGroup(Protocol):
    """The worker processes of a supervisor, as its management server sees them."""

    @property
    def all_started(self) -> bool:
        """Whether every process has had a session."""
        ...

    @property
    def longest_lag(self) -> float:
        """Seconds for which a process has not answered, at most: its event loop is blocked."""
        ...

    def read_health(self) -> Health:
        """Return the health of all processes as one."""
        ...

    async def request_reports(self) -> None:
        """Let the processes report their metrics, and wait for those that answer soon."""
        ...

    def collect(self) -> Iterable[Family]:
        """Return the metrics of all processes added up. Counters never decrease."""
        ...
