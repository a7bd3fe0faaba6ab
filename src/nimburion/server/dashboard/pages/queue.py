"""The page of one queue."""

from __future__ import annotations

from typing import Literal

import msgspec

from nimburion.core.diagnosis.unserved import find_unserved, is_live, list_reasons
from nimburion.core.metrics.statistics import RUN_BOUNDS, WAIT_BOUNDS, Counters, Statistics
from nimburion.core.session import SessionInfo
from nimburion.server.dashboard.charts import Series, fill_intervals
from nimburion.server.dashboard.page import DashboardPage, PageRequest
from nimburion.server.dashboard.pages.queues import (
    HISTORY_SECONDS,
    HISTORY_STEP,
    QueueRow,
    compute_failed_share,
    make_empty_queue,
    make_row,
)

RANGES = {"1h": (3600, 60), "3h": (10_800, 60), "3d": (259_200, 3600), "30d": (2_592_000, 10_800)}
MAX_NAMES = 50


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


class QueueData(msgspec.Struct, frozen=True, kw_only=True):
    """One queue."""

    queue: QueueRow
    names: list[QueueName]
    workers: list[SessionInfo]
    """The live workers that serve the queue."""
    chart: ChartPoints


async def read_queue(request: PageRequest[QueueQuery]) -> QueueData:
    """Read one queue. A queue without jobs is empty; it is never unknown."""
    readings, name = request.readings, request.path["queue"]
    queues, sessions = await readings.list_queues(), await readings.list_sessions()
    queue = next((one for one in queues if one.name == name), None) or make_empty_queue(name)
    serving = [one for one in sessions if is_live(one) and name in one.queues]
    unserved = list_reasons(name, find_unserved([queue], sessions))
    hour = await readings.list_statistics(HISTORY_SECONDS, HISTORY_STEP, queue=name)
    seconds, shown_step = RANGES[request.query.range]
    step = next(one for one in (3600, 600, 60) if one <= shown_step)
    rows = hour
    if request.query.range != "1h":
        rows = await readings.list_statistics(seconds, step, queue=name, max_age=20.0)
    limits = {limit.name: limit for limit in await readings.list_limits()}
    by_name: dict[str, Counters] = {}
    for row in rows:
        by_name.setdefault(row.name, Counters()).add(row.counters)
    names = [
        QueueName(
            name=one,
            waiting=queue.names.get(one, 0),
            completed=counters.completed,
            failed=counters.failed,
            failed_share=compute_failed_share(counters),
            wait_p95=counters.wait.estimate_quantile(0.95, WAIT_BOUNDS),
            run_p95=counters.run.estimate_quantile(0.95, RUN_BOUNDS),
            limit=limits[one].limit if one in limits else None,
            in_use=limits[one].in_use if one in limits else None,
            unserved=unserved.get(one),
        )
        for one in {*by_name, *queue.names}
        for counters in (by_name.get(one, Counters()),)
    ]
    names.sort(key=lambda one: (-one.waiting, -one.completed, one.name))
    return QueueData(
        queue=make_row(queue, hour, unserved, len(serving), readings.now),
        names=names[:MAX_NAMES],
        workers=serving,
        chart=make_chart_points(rows, readings.now, seconds, shown_step),
    )


def make_chart_points(rows: list[Statistics], now: float, seconds: int, step: int) -> ChartPoints:
    """Return the sums of all rows for each interval of the last `seconds`."""
    until = (now // step + 1) * step
    since = until - seconds
    count = int(seconds // step)
    return ChartPoints(
        since=since,
        until=until,
        step=step,
        **{
            field: fill_intervals(rows, field, since, step, count)
            for field in ("enqueued", "completed", "failed", "retried")
        },
    )


QUEUE = DashboardPage(
    path="/queues/{queue}",
    title="{queue}",
    section="Queues",
    read=read_queue,
    template="queue.html",
    query=QueueQuery,
)
