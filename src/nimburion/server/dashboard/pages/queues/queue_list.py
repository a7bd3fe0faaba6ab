"""The page of all queues, and the rows of queues that other pages show too."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nimburion.core.diagnosis.unserved import (
    QueueSummary,
    is_live,
    make_empty_queue,
    summarize_queues,
)
from nimburion.core.metrics.statistics import Counters
from nimburion.core.queries import QueueInfo
from nimburion.core.session import SessionInfo
from nimburion.server.api import queues as queue_operations
from nimburion.server.api.queues import AllPauses
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.pages.queues.queue_causes import (
    LIMIT_AGE,
    QueueCause,
    count_names,
    find_queue_causes,
)
from nimburion.server.dashboard.readings import PageReadings
from nimburion.server.dashboard.recent_statistics import RecentHour

PAGE_SIZE = 100


class QueueRow(QueueSummary, frozen=True, kw_only=True):
    """One queue. Rates are jobs a minute over the last five minutes; waits, runs and failures are
    those of the last hour.
    """

    workers: int
    """The live workers that serve the queue."""
    enqueued_rate: float
    completed_rate: float
    failed: int
    failed_share: float | None
    """Failed attempts as a share of all that ended; None if none ended."""
    wait_p50: float | None
    wait_p95: float | None
    run_p50: float | None
    run_p95: float | None
    drain_seconds: float | None
    """How long the due jobs take at the present rates, as `estimate_drain` returns it."""
    history: list[float]
    """Completed jobs in each of the last 60 minutes."""
    cause: QueueCause | None = None
    """Why most of its due jobs wait, if a list shows it and they wait for more than their turn."""


class QueueListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which queues to show, and in which order."""

    sort: Literal["oldest", "name", "size", "rate", "failed"] = "oldest"
    page: Annotated[int, Meta(ge=1, le=1000)] = 1


class QueueListData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of queues."""

    queues: list[QueueRow]
    total: int
    page: int
    pages: int


def make_rows(
    queues: Iterable[QueueInfo], sessions: Sequence[SessionInfo], hour: RecentHour
) -> list[QueueRow]:
    """Return a row for each queue that holds a job, is paused, is served or was used lately."""
    known = {queue.name: queue for queue in summarize_queues(queues, sessions)}
    served: dict[str, int] = {}
    for session in filter(is_live, sessions):
        for queue in session.queues:
            served[queue] = served.get(queue, 0) + 1
    return [
        make_row(known.get(name) or make_empty_queue(name), hour, served.get(name, 0))
        for name in sorted({*known, *hour.queues, *served})
    ]


async def add_causes(
    readings: PageReadings,
    rows: list[QueueRow],
    queues: Iterable[QueueInfo],
    sessions: Iterable[SessionInfo],
) -> list[QueueRow]:
    """Return the rows of a list with why most of their jobs wait. A paused queue needs no cause."""
    if not any(row.size and not row.paused for row in rows):
        return rows
    limits = {limit.name: limit for limit in await readings.list_limits(LIMIT_AGE)}
    names, serving = count_names(queues), dict[str, list[SessionInfo]]()
    for session in filter(is_live, sessions):
        for queue in session.queues:
            serving.setdefault(queue, []).append(session)
    causes = {
        row.name: find_queue_causes(row, names, limits, (), serving.get(row.name, ()))
        for row in rows
        if not row.paused
    }
    return [
        msgspec.structs.replace(row, cause=causes[row.name][0]) if causes.get(row.name) else row
        for row in rows
    ]


def make_row(queue: QueueSummary, hour: RecentHour, workers: int) -> QueueRow:
    """Return the row of one queue."""
    seen = hour.get_queue(queue.name)
    rate, enqueued_rate = hour.compute_rate(seen.completed), hour.compute_rate(seen.enqueued)
    wait, run = seen.counters.wait, seen.counters.run
    return QueueRow(
        **msgspec.structs.asdict(queue),
        workers=workers,
        enqueued_rate=enqueued_rate,
        completed_rate=rate,
        failed=seen.counters.failed,
        failed_share=compute_failed_share(seen.counters),
        wait_p50=wait.estimate_quantile(0.5),
        wait_p95=wait.estimate_quantile(0.95),
        run_p50=run.estimate_quantile(0.5),
        run_p95=run.estimate_quantile(0.95),
        drain_seconds=estimate_drain(queue.size, enqueued_rate, rate)
        if queue.size_complete
        else None,
        history=seen.completed,
    )


def estimate_drain(due: int, enqueued_rate: float, completed_rate: float) -> float | None:
    """Return the seconds until no job is due, at the present rates of jobs a minute.

    None if no job is due, or if as many or more are enqueued than completed.

    >>> estimate_drain(100, 20, 70), estimate_drain(100, 1374, 185)
    (120.0, None)
    """
    rate = completed_rate - enqueued_rate
    return 60 * due / rate if due and rate > 0 else None


def compute_failed_share(counters: Counters) -> float | None:
    """Return failed attempts as a share of all that ended; None if none ended."""
    bad = counters.failed + counters.retried
    ended = bad + counters.completed
    return bad / ended if ended else None


def sort_rows(rows: list[QueueRow], order: str) -> list[QueueRow]:
    """Return rows in one of the orders of `QueueListQuery.sort`; equal ones by name."""
    keys = {
        "oldest": lambda row: (-row.oldest_age, -row.size, row.name),
        "name": lambda row: row.name,
        "size": lambda row: (-row.size, row.name),
        "rate": lambda row: (-row.completed_rate, row.name),
        "failed": lambda row: (-(row.failed_share or 0.0), row.name),
    }
    return sorted(rows, key=keys[order])


async def read_queues(request: PageRequest[QueueListQuery]) -> QueueListData:
    """Read all queues, and return a part of them."""
    readings, query = request.readings, request.query
    queues, sessions = await readings.list_queues(), await readings.list_sessions()
    rows = make_rows(queues, sessions, await readings.read_hour())
    pages = max(1, -(-len(rows) // PAGE_SIZE))
    start = (min(query.page, pages) - 1) * PAGE_SIZE
    shown = sort_rows(rows, query.sort)[start : start + PAGE_SIZE]
    return QueueListData(
        queues=await add_causes(readings, shown, queues, sessions),
        total=len(rows),
        page=min(query.page, pages),
        pages=pages,
    )


QUEUES = DashboardPage(
    path="/queues",
    title="Queues",
    section="Queues",
    read=read_queues,
    template="queues/queues.html",
    tables=("queues",),
    query=QueueListQuery,
)


def describe_all(changed: AllPauses) -> str:
    """Return how many queues were paused or resumed."""
    count = len(changed.queues)
    return f"{count} queue{'' if count == 1 else 's'} {'paused' if changed.paused else 'resumed'}."


ACTIONS = (
    DashboardAction(
        path="/queues/pause",
        operation=find_operation(queue_operations.OPERATIONS, "pause_all_queues"),
        done="All queues are paused.",
        back="",
        describe=describe_all,
    ),
    DashboardAction(
        path="/queues/resume",
        operation=find_operation(queue_operations.OPERATIONS, "resume_all_queues"),
        done="All queues are resumed.",
        back="",
        describe=describe_all,
    ),
    DashboardAction(
        path="/queues/{queue}/pause",
        operation=find_operation(queue_operations.OPERATIONS, "pause_queue"),
        done="Queue {queue} is paused.",
        back="/queues/{queue}",
    ),
    DashboardAction(
        path="/queues/{queue}/resume",
        operation=find_operation(queue_operations.OPERATIONS, "resume_queue"),
        done="Queue {queue} is resumed.",
        back="/queues/{queue}",
    ),
)
