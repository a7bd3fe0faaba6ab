"""The checks of `nimburion doctor`, for a backend that is open."""

from __future__ import annotations

import asyncio

import msgspec

from nimburion.config.local_checks import run_local_checks
from nimburion.core.diagnosis.backend_checks import run_backend_checks
from nimburion.core.diagnosis.checks import CheckResult, Verdict, find_worst
from nimburion.core.settings import Config
from nimburion.jobs.client.client import Client

CHECKS_MAX_AGE = 5.0
"""Seconds for which a report counts. More requests cause no more checks."""
CHECKS_TIMEOUT = 20.0
"""Seconds after which a backend counts as unreachable."""


class ChecksReport(msgspec.Struct, frozen=True):
    """The results of all checks, and the most severe verdict."""

    verdict: Verdict
    checks: tuple[CheckResult, ...]
    checked_at: float
    """Epoch seconds."""


class BackendChecks:
    """Runs the checks, once at a time."""

    def __init__(self, config: Config, client: Client) -> None:
        self._config = config
        self._client = client
        self._running = asyncio.Lock()
        self._report: ChecksReport | None = None
        self._made_at = 0.0

    async def run(self) -> ChecksReport:
        """Return a report that is at most `CHECKS_MAX_AGE` seconds old."""
        clock = self._client.clock
        async with self._running:
            if self._report is None or clock.monotonic() - self._made_at > CHECKS_MAX_AGE:
                found = [*run_local_checks(self._config), *await self._check_backend()]
                self._made_at = clock.monotonic()
                self._report = ChecksReport(find_worst(found), tuple(found), clock.now())
            return self._report

    async def _check_backend(self) -> list[CheckResult]:
        backend = self._client.backend
        described = CheckResult("backend", "good", backend.describe())
        return [described, *await run_backend_checks(backend, CHECKS_TIMEOUT)]
