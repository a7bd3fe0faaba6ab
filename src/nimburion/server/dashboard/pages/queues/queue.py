"""The page of one queue."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal

import msgspec

from nimburion.actions.search import format_qualifier
from nimburion.core.diagnosis.unserved import (
    QueueSummary,
    is_live,
    make_empty_queue,
    summarize_queues,
)
from nimburion.core.fairness import TenantUse, TenantUses
from nimburion.core.limits import (
    LimitChange,
    LimitInfo,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.core.metrics.statistics import STEPS, Counters, Statistics
from nimburion.core.queries import QueueInfo
from nimburion.core.session import SessionInfo
from nimburion.server.dashboard.charts import Series, fill_intervals
from nimburion.server.dashboard.page import DashboardPage, PageRequest
from nimburion.server.dashboard.pages.queues.queue_causes import (
    LIMIT_AGE,
    QueueCause,
    count_names,
    find_queue_causes,
)
from nimburion.server.dashboard.pages.queues.queue_list import (
    QueueRow,
    compute_failed_share,
    make_row,
)
from nimburion.server.dashboard.readings import PageReadings
from nimburion.server.dashboard.recent_statistics import QueueHour, RecentHour

RANGES = {"1h": (3600, 60), "3h": (10_800, 60), "3d": (259_200, 3600), "30d": (2_592_000, 10_800)}
MAX_NAMES = 50
MAX_WORKERS = 50
MAX_TURNS = 20
"""The tenants of the queue that are shown, those whose turn is next."""
MAX_TENANTS_READ = 500
"""The tenants of all queues that one read returns."""


class QueueQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The time that the charts show."""

    range: Literal["1h", "3h", "3d", "30d"] = "1h"


class QueueName(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs of one name in a queue, over the time of the charts."""

    name: str
    waiting: int
    completed: int
    failed: int
    failed_share: float | None
    wait_p95: float | None
    run_p95: float | None
    limit: int | None
    """The concurrency limit of the name; None without one."""
    in_use: int | None
    unserved: str | None
    """Why no live worker takes its jobs; None if one does, or if none wait."""


class ChartPoints(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a chart, one for each interval."""

    since: float
    until: float
    step: int
    enqueued: list[float]
    completed: list[float]
    failed: list[float]
    retried: list[float]

    @property
    def series(self) -> list[Series]:
        """What the chart draws."""
        return [
            Series("completed", "done", self.completed),
            Series(
                "failed attempts",
                "failed",
                [
                    failed + retried
                    for failed, retried in zip(self.failed, self.retried, strict=True)
                ],
            ),
        ]


class QueueLimit(msgspec.Struct, frozen=True, kw_only=True):
    """The limit of the whole queue over all workers."""

    name: str
    """Its name: `queue:mail`."""
    maximum: int | None
    rate: str | None
    in_use: int
    opens_at: float | None
    """When its rate allows the next job."""
    change: LimitChange | None
    """How an operator changed it."""


class TenantOrder(msgspec.Struct, frozen=True, kw_only=True):
    """The tenants of the queue that have waiting jobs, in the order of their turns."""

    tenants: list[TenantUse]
    complete: bool
    """False: there may be more tenants than were read."""


class QueueData(msgspec.Struct, frozen=True, kw_only=True):
    """One queue."""

    queue: QueueRow
    causes: list[QueueCause]
    """Why its due jobs wait, the cause of most jobs first."""
    names: list[QueueName]
    workers: list[SessionInfo]
    """The live workers that serve the queue, at most `MAX_WORKERS`."""
    worker_count: int
    chart: ChartPoints
    limit: QueueLimit
    turns: TenantOrder


class QueueHistory(msgspec.Struct, frozen=True, kw_only=True):
    """The statistics of one queue over the time of the charts."""

    names: dict[str, Counters]
    chart: ChartPoints


async def read_queue(request: PageRequest[QueueQuery]) -> QueueData:
    """Read one queue. A queue without jobs is empty; it is never unknown."""
    readings, name = request.readings, request.path["queue"]
    queues, sessions = await readings.list_queues(), await readings.list_sessions()
    (queue,) = summarize_queues([one for one in queues if one.name == name], sessions) or (
        make_empty_queue(name),
    )
    serving = [one for one in sessions if is_live(one) and name in one.queues]
    history = await _read_history(readings, name, request.query.range)
    limits = {limit.name: limit for limit in await readings.list_limits(LIMIT_AGE)}
    names = [
        make_name_row(one, queue, history.names.get(one, Counters()), limits)
        for one in {*history.names, *queue.names}
    ]
    names.sort(key=lambda one: (-one.waiting, -one.completed, one.name))
    info = next((one for one in queues if one.name == name), None)
    return QueueData(
        causes=await _find_causes(readings, info, queues, limits, serving) if info else [],
        queue=make_row(queue, await readings.read_hour(), len(serving)),
        names=names[:MAX_NAMES],
        workers=serving[:MAX_WORKERS],
        worker_count=len(serving),
        chart=history.chart,
        limit=make_limit(name, limits),
        turns=await read_turns(readings, name),
    )


async def _find_causes(
    readings: PageReadings,
    queue: QueueInfo,
    queues: list[QueueInfo],
    limits: Mapping[str, LimitInfo],
    serving: list[SessionInfo],
) -> list[QueueCause]:
    parks = any(limit.parked and limit.rules.keys() & queue.names for limit in limits.values())
    running = (await readings.list_running(LIMIT_AGE)).jobs if parks else []
    return find_queue_causes(queue, count_names(queues), limits, running, serving)


def make_limit(queue: str, limits: Mapping[str, LimitInfo]) -> QueueLimit:
    """Return the limit of a whole queue, and what is in use of it."""
    name = make_queue_limit_name(queue)
    limit = limits.get(name, LimitInfo(name=name))
    rates = sorted({rule.rate.rate for rule in limit.rules.values() if rule.rate})
    return QueueLimit(
        name=name,
        maximum=limit.concurrency,
        rate=" or ".join(rates) or None,
        in_use=limit.in_use,
        opens_at=limit.opens_at,
        change=limit.change,
    )


async def read_turns(readings: PageReadings, queue: str) -> TenantOrder:
    """Read the tenants with waiting jobs in a queue. The first one of a priority is next.

    To count their jobs takes up to half a second where a million jobs wait. So the page shows the
    last counts, and no tenants before the first.
    """

    async def read() -> TenantUses:
        return await readings.backend.reads.list_tenants(MAX_TENANTS_READ)

    read_uses = await readings.peek("tenants", read, LIMIT_AGE, waits=True)
    if read_uses is None:
        return TenantOrder(tenants=[], complete=False)
    uses = read_uses.tenants
    waiting = [use for use in uses if use.queue == queue and use.waiting]
    complete = len(uses) < MAX_TENANTS_READ and len(waiting) <= MAX_TURNS
    return TenantOrder(tenants=waiting[:MAX_TURNS], complete=complete)


def make_name_row(
    name: str,
    queue: QueueSummary,
    counters: Counters,
    limits: Mapping[str, LimitInfo],
) -> QueueName:
    """Return the row of one name of a queue."""
    limit = limits.get(make_job_limit_name(name))
    maximum = None if limit is None else limit.concurrency
    return QueueName(
        name=name,
        waiting=queue.names.get(name, 0),
        completed=counters.completed,
        failed=counters.failed,
        failed_share=compute_failed_share(counters),
        wait_p95=counters.wait.estimate_quantile(0.95),
        run_p95=counters.run.estimate_quantile(0.95),
        limit=maximum,
        in_use=None if limit is None or maximum is None else limit.in_use,
        unserved=queue.unserved.get(name),
    )


async def _read_history(readings: PageReadings, queue: str, name: str) -> QueueHistory:
    """Return the statistics of a queue over one of the `RANGES`."""
    seconds, step = RANGES[name]
    stored_step = max(one for one in STEPS if one <= step)

    async def read() -> QueueHistory:
        until = (readings.now // step + 1) * step
        rows = await readings.backend.reads.list_statistics(
            until - seconds, until, stored_step, queue=queue
        )
        names: dict[str, Counters] = {}
        for number, row in enumerate(rows, start=1):
            names.setdefault(row.name, Counters()).add(row.counters)
            if number % 500 == 0:
                await asyncio.sleep(0)
        chart = make_chart_points(rows, until - seconds, until, step)
        return QueueHistory(names=names, chart=chart)

    return await readings.read(f"queue {queue} {name}", read, 10.0 if step == 60 else 30.0)


def make_chart_points(rows: list[Statistics], since: float, until: float, step: int) -> ChartPoints:
    """Return the sums of all rows for each interval of a time."""
    count = int((until - since) // step)
    return ChartPoints(
        since=since,
        until=until,
        step=step,
        **{
            field: fill_intervals(rows, field, since, step, count)
            for field in ("enqueued", "completed", "failed", "retried")
        },
    )


def make_hour_chart(hour: RecentHour, queue: QueueHour) -> ChartPoints:
    """Return the numbers of the last hour."""
    return ChartPoints(
        since=hour.since,
        until=hour.until,
        step=60,
        enqueued=queue.enqueued,
        completed=queue.completed,
        failed=queue.failed,
        retried=queue.retried,
    )


QUEUE = DashboardPage(
    path="/queues/{queue}",
    title="{queue}",
    section="Queues",
    read=read_queue,
    template="queues/queue.html",
    tables=("names", "turns.tenants", "workers"),
    query=QueueQuery,
    constants={"format_qualifier": format_qualifier},
)
