"""The page `/metrics`: the metrics of this process and of the backend, for Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response

from nimburion.core.service import Service, wait_for_first
from nimburion.core.timing.clock import Clock
from nimburion.jobs.client.client import Client
from nimburion.server.access import Caller
from nimburion.server.worker_group import WorkerGroup
from nimburion.telemetry.aggregation import combine_families
from nimburion.telemetry.backend_metrics import BackendMetrics
from nimburion.telemetry.families import Family
from nimburion.telemetry.registry import MetricsRegistry, MetricsSource

METRICS_MAX_AGE = 1.0
"""Seconds for which a read of the backend counts. More scrapes cause no more reads."""
LIMITS_INTERVAL = 30.0
"""Seconds between two reads of the concurrency limits, in the background."""


class MetricsPage:
    """Renders the metrics, in the format that the request accepts.

    A scrape makes at most two reads of the backend. Scrapes at the same time share them. If the
    backend does not answer, the page has `backend_up 0` and the metrics of this process.
    """

    def __init__(self, client: Client, workers: WorkerGroup | None = None) -> None:
        self._clock = client.clock
        self._workers = workers
        self._backend_metrics = BackendMetrics(client.backend)
        self._registry = MetricsRegistry(client.metrics.namespace)
        self._registry.add_source(
            client.metrics if workers is None else _JoinedMetrics(client.metrics, workers)
        )
        self._registry.add_source(self._backend_metrics)
        self._refreshing = asyncio.Lock()
        self._refreshed_at: float | None = None
        self.slow_readings: SlowReadings = SlowReadings(self._backend_metrics, client.clock)

    async def respond(self, request: Request, _: Caller) -> Response:
        """Answer a scrape."""
        await self._refresh()
        text, content_type = self._registry.render(request.headers.get("accept", ""))
        return Response(text, media_type=content_type)

    async def _refresh(self) -> None:
        """Read the backend, unless that was done at most `METRICS_MAX_AGE` ago."""
        async with self._refreshing:
            now = self._clock.monotonic()
            if self._refreshed_at is None or now - self._refreshed_at > METRICS_MAX_AGE:
                if self._workers is not None:
                    await self._workers.request_reports()
                await self._backend_metrics.refresh()
                self._refreshed_at = self._clock.monotonic()


class SlowReadings(Service):
    """Reads in the background what changes slowly, so that no scrape waits for it."""

    logger_name = "nimburion.server"

    def __init__(self, backend_metrics: BackendMetrics, clock: Clock) -> None:
        super().__init__(clock)
        self._backend_metrics = backend_metrics

    async def run(self) -> None:
        while not self.stopping.is_set():
            await wait_for_first(
                self._backend_metrics.refresh_slow_readings(), self.stopping.wait()
            )
            await self.pause(LIMITS_INTERVAL)


class _JoinedMetrics:
    """The metrics of this process and of its worker processes, added up."""

    def __init__(self, own: MetricsSource, workers: WorkerGroup) -> None:
        self._own = own
        self._workers = workers

    def collect(self) -> Iterable[Family]:
        return combine_families([self._own.collect(), self._workers.collect()])
