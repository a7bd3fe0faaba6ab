"""The scheduler: enqueues one job per tick. Any number may run, and no leader is needed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar, Unpack, cast, overload

from nimburion.core.errors import BackendError, DefinitionError
from nimburion.core.schedules import ScheduleRecord, list_schedules
from nimburion.core.service import Service, wait_for_first
from nimburion.core.settings import Config, SchedulerSettings
from nimburion.core.timing.timezones import find_zone
from nimburion.jobs.client.client import share_outage_log
from nimburion.jobs.processor import Processor
from nimburion.scheduler.backend_clock import BackendClock
from nimburion.scheduler.declarations import (
    DeclaredSchedule,
    ScheduleOptions,
    Template,
    declare_schedule,
    declare_task,
)
from nimburion.scheduler.entries import ScheduleEntries, ScheduleEntry
from nimburion.scheduler.registration import ScheduleRegistration
from nimburion.scheduler.ticker import Ticker
from nimburion.scheduler.triggers import When

_REFRESH_INTERVAL = 5.0
"""Seconds between two reads of the schedules."""
_IDLE_REFRESH_INTERVAL = 15.0
"""Seconds between two reads while there is no schedule."""
_CATCH_UP_REFRESH_INTERVAL = 0.5
"""Seconds until the next read after other schedulers decided several ticks first."""
_MAX_CONCURRENT_TICKS = 64
"""The most ticks decided concurrently. Backends batch concurrent writes."""
_PAUSE_AFTER_ERROR = 1.0
"""Seconds until the next try after the backend did not answer."""

Decorated = TypeVar("Decorated")


class Scheduler(Service):
    """Fires the schedules that this process declares, and those that were added by hand.

    ```python
    scheduler = Scheduler(processor)
    scheduler.schedule("0 2 * * *", DailyReport(), timezone="Europe/Rome")
    ```

    The scheduler starts and stops with the worker of the processor, or by `start` and `stop`. With
    `in_workers=False`, only `start` starts it. `timezone` applies to schedules that name no time
    zone; the default is UTC.
    """

    logger_name = "nimburion.scheduler"

    def __init__(
        self, processor: Processor, *, timezone: str = "UTC", in_workers: bool = True
    ) -> None:
        super().__init__(processor.clock)
        share_outage_log(processor, self)
        self.processor: Processor = processor
        """The processor whose jobs it enqueues."""
        self.timezone: str = find_zone(timezone).key
        """The time zone of schedules that name none."""
        self._declared: dict[str, DeclaredSchedule] = {}
        self._backend_clock = BackendClock(processor.clock, processor.backend)
        self._ticker = Ticker(processor, self._declared, self._backend_clock)
        self._registration = ScheduleRegistration(
            processor.backend, processor.settings.owner, self._declared
        )
        self._entries = ScheduleEntries()
        self._refreshed_at: float | None = None
        if in_workers:
            processor.add_service(self)

    def __repr__(self) -> str:
        return f"<Scheduler of {self.processor!r}: {len(self._declared)} declared>"

    @classmethod
    def from_config(cls, processor: Processor, config: Config) -> Scheduler:
        """Create a scheduler with the time zone and the tasks of the configuration."""
        settings = config.scheduler
        scheduler = cls(processor, timezone=settings.timezone, in_workers=settings.enabled)
        scheduler.add_tasks(settings)
        return scheduler

    @classmethod
    def configure(cls, processor: Processor, settings: SchedulerSettings) -> Scheduler | None:
        """Make the worker of a processor run one scheduler, with the configured tasks.

        The application's own scheduler is used if the processor has one. If the configuration
        disables schedulers, the worker runs none, and the result is None.
        """
        if not settings.enabled:
            processor.services[:] = [
                service for service in processor.services if not isinstance(service, cls)
            ]
            return None
        existing = next(
            (service for service in processor.services if isinstance(service, cls)), None
        )
        scheduler = existing or cls(processor, timezone=settings.timezone)
        scheduler.add_tasks(settings)
        return scheduler

    # Declaring

    @overload
    def schedule(self, when: When, job: Template, /, **options: Unpack[ScheduleOptions]) -> str: ...
    @overload
    def schedule(
        self, when: When, /, **options: Unpack[ScheduleOptions]
    ) -> Callable[[Decorated], Decorated]: ...
    def schedule(
        self, when: When, job: object = None, /, **options: Unpack[ScheduleOptions]
    ) -> object:
        """Enqueue `job` at each tick and return the name of the schedule. Without `job`: a
        decorator.

        `when` is a cron expression, `"@every 5m"`, a timedelta, or a datetime (once). `job` is a
        job, a job class or function that needs no arguments, or a function that returns the job for
        a nominal time. Raises `DefinitionError` for invalid values, for a name that is already
        declared here, and while the scheduler runs.
        """
        if job is None:
            return partial(self._decorate, when, options)
        declared = declare_schedule(self.processor, when, job, self.timezone, options)
        return self._declare(declared)

    def add_tasks(self, settings: SchedulerSettings) -> None:
        """Declare the tasks of the configuration. Tasks whose names are already declared in code
        are skipped."""
        for task in settings.tasks:
            if task.name in self._declared:
                continue
            self._declare(declare_task(self.processor, task, settings.timezone))

    @property
    def names(self) -> list[str]:
        """The names of the schedules that this process declares."""
        return list(self._declared)

    # Lifecycle

    async def start(self) -> None:
        """Start to fire in the background of this event loop. Does nothing if the scheduler runs
        already."""
        if self.running:
            return
        await self.processor.open()
        self._warn_about_unknown_jobs()
        self._registration.begin()
        self._refreshed_at = None
        await super().start()

    async def run(self) -> None:
        """Fire due ticks until `stop` is called. If the backend is unreachable, retry after 1
        second."""
        while not self.stopping.is_set():
            in_outage = self.outage.since is not None
            try:
                await self.fire_due()
            except BackendError as error:
                self._note_backend_error(error, in_outage=in_outage)
                self._refreshed_at = None
                await self.pause(_PAUSE_AFTER_ERROR)
            else:
                self._note_success()
                await self._wait_for_next()

    # Firing

    async def fire_due(self) -> int:
        """Decide every due tick now; return the number that this process decided. Useful in
        tests: nothing runs in the background."""
        await self._refresh()
        decided = 0
        while due := self._take_due(_MAX_CONCURRENT_TICKS):
            results = await asyncio.gather(*map(self._ticker.decide, due), return_exceptions=True)
            for entry in due:
                self._entries.put_back(entry)
            decided += _count_decided(results)
        return decided

    @property
    def next_due(self) -> int | None:
        """Time of the next tick of all schedules in epoch seconds, as of the last read; None if
        there is none."""
        return self._entries.next_due

    def _take_due(self, most: int) -> list[ScheduleEntry]:
        due = self._entries.take_due(self._backend_clock.now())
        return [entry for _, entry in zip(range(most), due, strict=False)]

    async def _refresh(self) -> None:
        """Read the schedules from the backend if the refresh interval has passed."""
        now = self.clock.monotonic()
        if self._refreshed_at is not None and now - self._refreshed_at < self._refresh_interval:
            return
        await self._backend_clock.synchronize()
        backend = self.processor.backend
        records = await list_schedules(backend)
        if await self._registration.write_changes(records, self._backend_clock.now()):
            records = await list_schedules(backend)
        self._entries.update([record for record in records if self._is_ours(record)])
        self._refreshed_at, self._ticker.behind = now, False

    @property
    def _refresh_interval(self) -> float:
        if self._ticker.behind:
            return _CATCH_UP_REFRESH_INTERVAL
        return (
            _REFRESH_INTERVAL if self._entries.entries or self._declared else _IDLE_REFRESH_INTERVAL
        )

    def _is_ours(self, record: ScheduleRecord) -> bool:
        """Return whether a schedule is declared here, requests a job of one that is, or was added
        by hand."""
        if not record.owner:
            return True
        if record.owner != self.processor.settings.owner:
            return False
        if record.name in self._declared:
            return True
        spec = self._registration.parse_spec(record)
        return spec is not None and spec.run_of in self._declared

    async def _wait_for_next(self) -> None:
        due = self.next_due
        wait = (
            self._refresh_interval
            if due is None
            else min(self._refresh_interval, due - self._backend_clock.now())
        )
        if wait > 0:
            await wait_for_first(self.clock.sleep(wait), self.stopping.wait())

    # Internals

    def _decorate(self, when: When, options: ScheduleOptions, template: Decorated) -> Decorated:
        self.schedule(when, cast("Template", template), **options)
        return template

    def _declare(self, schedule: DeclaredSchedule) -> str:
        if self.running:
            raise DefinitionError("declare schedules before the scheduler is started")
        if schedule.name in self._declared:
            raise DefinitionError(
                f"there is a schedule {schedule.name!r} already; give this one another name="
            )
        self._declared[schedule.name] = schedule
        return schedule.name

    def _warn_about_unknown_jobs(self) -> None:
        known = set(self.processor.registry.names)
        for schedule in self._declared.values():
            if schedule.spec.job and known and schedule.spec.job not in known:
                self._log.warning(
                    "schedule %r enqueues jobs %r, which are not registered here",
                    schedule.name,
                    schedule.spec.job,
                )


def _count_decided(results: Iterable[bool | BaseException]) -> int:
    """Return the number of decided ticks. Raises the first error after all of them have ended."""
    decided = 0
    for result in results:
        if isinstance(result, BaseException):
            raise result
        decided += result
    return decided
