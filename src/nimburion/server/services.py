"""What the routes of the management server work with."""

from __future__ import annotations

from random import Random

from nimburion.actions import Operator
from nimburion.core.backend import Backend
from nimburion.core.service import Service
from nimburion.core.settings import Config
from nimburion.jobs.bulk_operations import BulkOperationRunner
from nimburion.jobs.client.client import Client
from nimburion.jobs.processor import Processor
from nimburion.scheduler.schedules import Schedules
from nimburion.server.checks import BackendChecks
from nimburion.server.dashboard.fragments import SharedFragments
from nimburion.server.dashboard.preparation import PagePreparation
from nimburion.server.dashboard.readings import FOR_PAGES, ReadPolicy, SharedReadings
from nimburion.server.health import HealthChecks
from nimburion.server.metrics import MetricsPage
from nimburion.server.worker_group import WorkerGroup


class ManagementServices:
    """The client, checks, health, metrics, dashboard and background services of one process."""

    def __init__(
        self,
        config: Config,
        client: Client,
        health: HealthChecks,
        workers: WorkerGroup | None = None,
    ) -> None:
        self.config: Config = config
        self.client: Client = client
        self.health: HealthChecks = health
        self.schedules: Schedules = Schedules(client, config.scheduler.timezone)
        self.checks: BackendChecks = BackendChecks(config, client)
        self.metrics: MetricsPage = MetricsPage(client, workers)
        self.readings: SharedReadings = SharedReadings(client.backend, client.clock)
        self.page_policy: ReadPolicy = FOR_PAGES
        """How long somebody who opens a page waits for its values."""
        self.fragments: SharedFragments = SharedFragments(self.readings)
        self.preparation: PagePreparation = PagePreparation(
            client.clock, self.readings, reads_ahead=not isinstance(client, Processor)
        )
        self.bulk_operations: BulkOperationRunner = BulkOperationRunner(
            client.backend,
            client.clock,
            Random(),  # noqa: S311 (jitter, nothing secret)
        )

    def make_schedules(self, operator: Operator) -> Schedules:
        """Return the schedules, for the actions of this operator."""
        return Schedules(self.client, self.config.scheduler.timezone, operator)

    @property
    def background(self) -> tuple[Service, ...]:
        """The services that run while the management server answers."""
        return (
            self.health.loop_activity,
            self.metrics.slow_readings,
            self.bulk_operations,
            self.preparation,
        )

    async def stop_reads(self) -> None:
        """End the reads of all pages, so that the server can stop."""
        await self.fragments.stop()
        await self.readings.stop()

    @property
    def backend(self) -> Backend:
        """The backend of the client."""
        return self.client.backend

    @property
    def processor(self) -> Processor | None:
        """The processor whose worker runs in this process, or None."""
        return self.client if isinstance(self.client, Processor) else None
