"""The health of a process, for orchestrators: `/health/live`, `/health/ready`, `/health/startup`.

These routes need no token. Their answers hold no name, address or error text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec

from nimburion.core.backend import Backend
from nimburion.core.errors import NimburionError
from nimburion.core.service import Service
from nimburion.core.timing.clock import Clock
from nimburion.jobs.worker.health import Health

Phase = Literal["stopped", "starting", "started", "stopping"]
"""The phase of the process, from the start of the backend to its end."""

PING_TIMEOUT = 2.0
"""Seconds in which the backend must answer for the process to be ready."""
PING_MAX_AGE = 1.0
"""Seconds for which an answer of the backend counts. More requests cause no more calls."""
MAX_LAG = 5.0
"""Seconds since the event loop last ran a task, after which the process is not alive."""
_ACTIVITY_INTERVAL = 0.5


class HealthReport(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer of a health route. Its status is 200 if it is `ok`, else 503."""

    ok: bool
    phase: Phase
    reasons: tuple[str, ...] = ()
    """Why the check failed."""


class LoopActivity(Service):
    """Notes when the event loop last ran a task."""

    logger_name = "nimburion.server"

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self._noted_at = clock.monotonic()

    @property
    def seconds_since(self) -> float:
        """The seconds since the last note."""
        return self.clock.monotonic() - self._noted_at

    async def run(self) -> None:
        while not self.stopping.is_set():
            self._noted_at = self.clock.monotonic()
            await self.pause(_ACTIVITY_INTERVAL)


class BackendPing:
    """Finds out whether the backend answers, with at most one call at a time."""

    def __init__(self, backend: Backend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._answers = False
        self._pinged_at: float | None = None
        self._lock = asyncio.Lock()

    async def answers(self) -> bool:
        """Return whether the backend answered within `PING_TIMEOUT`, at most `PING_MAX_AGE` ago."""
        async with self._lock:
            now = self._clock.monotonic()
            if self._pinged_at is None or now - self._pinged_at > PING_MAX_AGE:
                self._answers = await self._ping_backend()
                self._pinged_at = self._clock.monotonic()
            return self._answers

    async def _ping_backend(self) -> bool:
        try:
            async with asyncio.timeout(PING_TIMEOUT):
                await self._backend.ping()
        except (NimburionError, TimeoutError):
            return False
        return True


class HealthChecks:
    """Answers the health routes.

    Args:
        read_phase: returns the phase of the process.
        read_worker: returns the health of the worker; None if this process has no worker.
        read_lag: returns for how many seconds the event loop of a worker process is blocked.
    """

    def __init__(
        self,
        backend: Backend,
        clock: Clock,
        read_phase: Callable[[], Phase],
        read_worker: Callable[[], Health | None] | None,
        read_lag: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.loop_activity: LoopActivity = LoopActivity(clock)
        self._ping = BackendPing(backend, clock)
        self._read_phase = read_phase
        self._read_worker = read_worker
        self._read_lag = read_lag

    def check_alive(self) -> HealthReport:
        """Report whether the event loop ran a task recently, and that of each worker process.

        The backend is never asked.
        """
        lag = max(self.loop_activity.seconds_since, self._read_lag())
        reasons = [] if lag <= MAX_LAG else [f"the event loop was blocked for {lag:.0f} s"]
        return self._report(reasons)

    async def check_ready(self) -> HealthReport:
        """Report whether this process works: it is not stopping, the backend answers, and the
        worker has a session.
        """
        reasons = []
        worker = None if self._read_worker is None else self._read_worker()
        if self._read_phase() in {"stopping", "stopped"} or (worker and worker.state == "stopping"):
            reasons.append("this process is stopping")
        elif worker is not None and worker.state not in {"ready", "degraded"}:
            state = "not started" if worker.state == "open" else worker.state
            reasons.append(f"the worker is {state}")
        if not reasons and not await self._ping.answers():
            reasons.append(f"the backend did not answer within {PING_TIMEOUT:g} s")
        return self._report(reasons)

    def check_started(self) -> HealthReport:
        """Report whether the start of this process is complete."""
        reasons = ["this process is starting"] if self._read_phase() == "starting" else []
        return self._report(reasons)

    def _report(self, reasons: list[str]) -> HealthReport:
        return HealthReport(ok=not reasons, phase=self._read_phase(), reasons=tuple(reasons))
