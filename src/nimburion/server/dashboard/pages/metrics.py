"""The page of metrics: throughput, failures, wait and run times over time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from typing import Literal

import msgspec

from nimburion.core.metrics.statistics import Counters, Statistics
from nimburion.core.session import SessionInfo
from nimburion.server.api.names import Name
from nimburion.server.dashboard.charts import Moment, Series
from nimburion.server.dashboard.page import DashboardPage, PageRequest
from nimburion.server.dashboard.pages.queues.queue import RANGES
from nimburion.server.dashboard.pages.queues.queue_list import compute_failed_share
from nimburion.server.dashboard.readings import PageReadings
from nimburion.server.dashboard.recent_statistics import STEP

MAX_ROWS = 100
MAX_DEPLOYMENTS = 10
HOUR = 3600
"""The interval of the statistics that are kept for longer than a week."""
WEEK = 7 * 24 * HOUR


class MetricsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to show, and for which time."""

    range: Literal["1h", "3h", "3d", "30d"] = "3h"
    by: Literal["queue", "name"] = "queue"
    """What the rows of the table are."""
    queue: Name | None = None
    name: Name | None = None


class MetricsInterval(msgspec.Struct, frozen=True, kw_only=True):
    """One interval of the charts. Times are in seconds; None without jobs."""

    start: float
    enqueued: int
    completed: int
    failed: int
    """Attempts that failed, with those that run again."""
    failed_share: float | None
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None


class PastInterval(msgspec.Struct, frozen=True, kw_only=True):
    """What an interval of the charts was a week before. Of intervals below an hour, it is the
    average of their hour, for no finer numbers are kept for so long.
    """

    completed: float
    failed_share: float | None
    wait_p95: float | None
    run_p95: float | None


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the application that live workers run."""

    version: str
    since: float
    """When the first of these workers started, in epoch seconds."""


class MetricsRow(msgspec.Struct, frozen=True, kw_only=True):
    """One queue, or the jobs of one name, over the whole time."""

    key: str
    enqueued: int
    completed: int
    dead: int
    """Jobs that became dead letters."""
    failed_share: float | None
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None


class MetricsData(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to jobs, by interval, and by queue or name."""

    step: int
    since: float
    until: float
    intervals: list[MetricsInterval]
    rows: list[MetricsRow]
    """Those with the most attempts, at most `MAX_ROWS`."""
    total: int
    """The number of queues or names."""
    week_before: list[PastInterval | None] = msgspec.field(default_factory=list)
    """The same intervals a week before; None where nothing is stored, empty if nothing is at all.
    """
    deployments: list[Deployment] = msgspec.field(default_factory=list)
    """The versions that started in this time, at most `MAX_DEPLOYMENTS`, the latest last."""

    @property
    def moments(self) -> list[Moment]:
        """Where the charts mark the deployments."""
        length = self.until - self.since
        return [
            Moment((one.since - self.since) / length, f"version {one.version}")
            for one in self.deployments
        ]

    @property
    def throughput_before(self) -> list[Series]:
        """Completed attempts a week before."""
        return self._compare("completed a week before", "completed")

    @property
    def failures_before(self) -> list[Series]:
        """Failed attempts in percent, a week before."""
        found = self._compare("a week before", "failed_share")
        return [one._replace(values=[100 * value for value in one.values]) for one in found]

    @property
    def waits_before(self) -> list[Series]:
        """The time within which 95 % started, a week before."""
        return self._compare("95 % a week before", "wait_p95")

    @property
    def runs_before(self) -> list[Series]:
        """The time within which 95 % of the attempts ended, a week before."""
        return self._compare("95 % a week before", "run_p95")

    def _compare(self, label: str, field: str) -> list[Series]:
        if not self.week_before:
            return []
        values = [None if one is None else getattr(one, field) for one in self.week_before]
        return [Series(label, "past", [_or_gap(value) for value in values])]

    @property
    def throughput(self) -> list[Series]:
        """Completed and failed attempts."""
        return [
            Series("completed", "done", [one.completed for one in self.intervals]),
            Series("failed attempts", "failed", [one.failed for one in self.intervals]),
        ]

    @property
    def failures(self) -> list[Series]:
        """Failed attempts in percent."""
        values = [100 * _or_gap(one.failed_share) for one in self.intervals]
        return [Series("failed attempts in %", "failed", values)]

    @property
    def waits(self) -> list[Series]:
        """Seconds from due to started."""
        return [
            Series("half within", "in", [_or_gap(one.wait_p50) for one in self.intervals]),
            Series("95 % within", "wait", [_or_gap(one.wait_p95) for one in self.intervals]),
        ]

    @property
    def runs(self) -> list[Series]:
        """Seconds that attempts ran."""
        return [
            Series("half within", "in", [_or_gap(one.run_p50) for one in self.intervals]),
            Series("95 % within", "run", [_or_gap(one.run_p95) for one in self.intervals]),
        ]


def _or_gap(value: float | None) -> float:
    """Return the value, or NaN for a gap of the line."""
    return math.nan if value is None else value


async def read_metrics(request: PageRequest[MetricsQuery]) -> MetricsData:
    """Read the statistics of the time, and add them up."""
    readings, query = request.readings, request.query
    seconds, step = RANGES[query.range]
    count = seconds // step
    window = readings.windows.get(step, count, by=query.by, queue=query.queue, name=query.name)

    async def read() -> MetricsData:
        since, until = await window.read(readings.now)
        sums = [window.totals.get(start) or Counters() for start in range(since, until, step)]
        by_key: dict[str, Counters] = {}
        async for _, key, counters in window.iterate():
            by_key.setdefault(key, Counters()).add(counters)
        rows = make_rows(by_key)
        return MetricsData(
            step=step,
            since=since,
            until=until,
            intervals=make_intervals(sums, since, step),
            rows=rows[:MAX_ROWS],
            total=len(rows),
        )

    shown = await readings.read(f"metrics {query}", read, 10.0 if step == STEP else 30.0)
    return msgspec.structs.replace(
        shown,
        week_before=await _read_week_before(readings, query, shown),
        deployments=find_deployments(await readings.list_sessions(), shown.since, shown.until),
    )


async def _read_week_before(
    readings: PageReadings, query: MetricsQuery, shown: MetricsData
) -> list[PastInterval | None]:
    """Return the intervals of the page a week before."""
    first, end = find_past_hours(shown.since, shown.until)

    async def read() -> dict[int, Counters]:
        rows = await readings.backend.reads.list_statistics(
            first, end, HOUR, queue=query.queue, name=query.name
        )
        hours: dict[int, Counters] = {}
        async for row in _iterate(rows):
            hours.setdefault(row.start, Counters()).add(row.counters)
        return hours

    key = f"week before {query.queue} {query.name} {first} {end}"
    hours = await readings.read(key, read, 600.0)
    if not hours:
        return []
    # Intervals of the same hour have the same past.
    starts = [(int(one.start) - WEEK) // HOUR * HOUR for one in shown.intervals]
    past = {start: compute_past_interval(hours, start, shown.step) for start in set(starts)}
    return [past[start] for start in starts]


def find_past_hours(since: float, until: float) -> tuple[int, int]:
    """Return the start and the end of the whole hours that hold this time a week before. They are
    the same for all minutes of an hour, so that the hours are not read each minute.
    """
    return int(since - WEEK) // HOUR * HOUR, -(int(WEEK - until) // HOUR) * HOUR


def compute_past_interval(hours: dict[int, Counters], start: int, step: int) -> PastInterval | None:
    """Return the interval that starts with this hour, or in it, from the sums of hours; None if
    nothing is stored.
    """
    sums = Counters()
    for hour in range(start, start + step, HOUR):
        sums.add(hours.get(hour, Counters()))
    if not sums.completed + sums.failed + sums.retried:
        return None
    return PastInterval(
        completed=sums.completed * min(1.0, step / HOUR),
        failed_share=compute_failed_share(sums),
        wait_p95=sums.wait.estimate_quantile(0.95),
        run_p95=sums.run.estimate_quantile(0.95),
    )


def find_deployments(sessions: list[SessionInfo], since: float, until: float) -> list[Deployment]:
    """Return the versions of the application that live workers run, and that started in a time."""
    starts: dict[str, float] = {}
    for session in sessions:
        version = session.vitals.code_version if session.vitals else ""
        if version:
            starts[version] = min(session.opened_at, starts.get(version, math.inf))
    found = [Deployment(version=version, since=at) for version, at in starts.items()]
    found.sort(key=lambda one: one.since)
    return [one for one in found if since <= one.since <= until][-MAX_DEPLOYMENTS:]


async def _iterate(statistics: list[Statistics]) -> AsyncIterator[Statistics]:
    """Yield the rows, and let other tasks run from time to time: there may be many."""
    for number, row in enumerate(statistics, start=1):
        yield row
        if number % 500 == 0:
            await asyncio.sleep(0)


def make_intervals(sums: list[Counters], since: float, step: int) -> list[MetricsInterval]:
    """Return the intervals of the charts from their sums."""
    return [
        MetricsInterval(
            start=since + index * step,
            enqueued=one.enqueued,
            completed=one.completed,
            failed=one.failed + one.retried,
            failed_share=compute_failed_share(one),
            wait_p50=one.wait.estimate_quantile(0.5),
            wait_p95=one.wait.estimate_quantile(0.95),
            run_p50=one.run.estimate_quantile(0.5),
            run_p95=one.run.estimate_quantile(0.95),
        )
        for index, one in enumerate(sums)
    ]


def make_rows(sums: dict[str, Counters]) -> list[MetricsRow]:
    """Return the rows of the table from their sums, those with the most attempts first."""
    rows = [
        MetricsRow(
            key=key,
            enqueued=one.enqueued,
            completed=one.completed,
            dead=one.failed,
            failed_share=compute_failed_share(one),
            wait_p50=one.wait.estimate_quantile(0.5),
            wait_p95=one.wait.estimate_quantile(0.95),
            run_p50=one.run.estimate_quantile(0.5),
            run_p95=one.run.estimate_quantile(0.95),
        )
        for key, one in sums.items()
    ]
    return sorted(rows, key=lambda row: (-row.completed - row.dead, row.key))


METRICS = DashboardPage(
    path="/metrics",
    title="Metrics",
    section="Metrics",
    read=read_metrics,
    template="metrics.html",
    tables=("rows", "intervals"),
    query=MetricsQuery,
    interval=10.0,
)
