"""The first page: what is wrong now, and the state of all queues."""

from __future__ import annotations

import msgspec

from nimburion.core.diagnosis.checks import CheckResult
from nimburion.core.diagnosis.failure_groups import FailureGroup, FailureGroups
from nimburion.core.diagnosis.unserved import is_live
from nimburion.core.job import FAILED_ONLY
from nimburion.core.queries import JobFilter
from nimburion.core.session import SessionInfo
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.page import DashboardPage, PageRequest
from nimburion.server.dashboard.pages.queues.queue import ChartPoints, make_hour_chart
from nimburion.server.dashboard.pages.queues.queue_list import (
    QueueRow,
    add_causes,
    compute_failed_share,
    estimate_drain,
    make_rows,
    sort_rows,
)

MAX_QUEUES = 12
MAX_GROUPS = 5
GROUP_BUDGET = 2_000
"""The dead letters that are examined for the groups."""


class WorkerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """The workers of all hosts."""

    live: int
    expired: int
    """Workers whose heartbeat is overdue and that nobody has rescued yet."""
    quiet: int
    """Live workers that an operator has made quiet: they start no further job."""
    slots: int
    running: int
    """Handlers that run."""
    reserved: int
    """Jobs that workers hold for their next free slots."""


class OverviewData(msgspec.Struct, frozen=True, kw_only=True):
    """What the overview shows. Totals of all queues; counts are those of the last hour."""

    due: int
    due_complete: bool
    """False: `due` is a sum of old counts or lower bounds; see `QueueRow`."""
    scheduled: int
    scheduled_complete: bool
    oldest_age: float
    oldest_queue: str | None
    enqueued_rate: float
    completed_rate: float
    drain_seconds: float | None
    failed: int
    failed_share: float | None
    rescued: int
    workers: WorkerCounts
    queues: list[QueueRow]
    """The queues with the oldest waiting jobs."""
    queue_count: int
    paused_count: int
    """The number of paused queues."""
    dead_letters: int
    """The number of dead letters examined, the newest ones."""
    all_dead_letters: bool
    """Whether `dead_letters` is the number of all."""
    groups: list[FailureGroup]
    checks: list[CheckResult]
    """The results of the checks that are not good; empty until the first check is done."""
    chart: ChartPoints


async def read_overview(request: PageRequest[NoQuery]) -> OverviewData:
    """Read queues, workers, the statistics of the last hour and the newest dead letters."""
    readings = request.readings
    sessions = await readings.list_sessions()
    hour = await readings.read_hour()
    queues = await readings.list_queues()
    rows = make_rows(queues, sessions, hour)
    found = await _group_failures(request)
    report = await readings.peek("checks", request.services.checks.run)
    counters = hour.total.counters
    oldest = max(rows, key=lambda row: row.oldest_age, default=None)
    due, due_complete = sum(row.size for row in rows), all(row.size_complete for row in rows)
    rate = hour.compute_rate(hour.total.completed)
    enqueued_rate = hour.compute_rate(hour.total.enqueued)
    return OverviewData(
        due=due,
        due_complete=due_complete,
        scheduled=sum(row.scheduled for row in rows),
        scheduled_complete=all(row.scheduled_complete for row in rows),
        oldest_age=0.0 if oldest is None else oldest.oldest_age,
        oldest_queue=oldest.name if oldest is not None and oldest.size else None,
        enqueued_rate=enqueued_rate,
        completed_rate=rate,
        drain_seconds=estimate_drain(due, enqueued_rate, rate) if due_complete else None,
        failed=counters.failed,
        failed_share=compute_failed_share(counters),
        rescued=counters.rescued,
        workers=count_workers(sessions),
        queues=await add_causes(readings, sort_rows(rows, "oldest")[:MAX_QUEUES], queues, sessions),
        queue_count=len(rows),
        paused_count=sum(row.paused for row in rows),
        dead_letters=found.examined,
        all_dead_letters=found.complete,
        groups=found.groups,
        checks=[one for one in report.checks if one.verdict != "good"] if report else [],
        chart=make_hour_chart(hour, hour.total),
    )


async def _group_failures(request: PageRequest[NoQuery]) -> FailureGroups:
    backend = request.readings.backend
    which, since = JobFilter(states=FAILED_ONLY), (request.readings.now - 3600.0,)
    return await request.readings.read(
        "overview groups",
        lambda: backend.reads.group_failures(
            which, limit=MAX_GROUPS, budget=GROUP_BUDGET, since=since
        ),
        30.0,
    )


def count_workers(sessions: list[SessionInfo]) -> WorkerCounts:
    """Return the numbers of workers and of their slots."""
    live = [session for session in sessions if is_live(session)]
    vitals = [session.vitals for session in live if session.vitals is not None]
    running = sum(map(count_handlers, live))
    return WorkerCounts(
        live=len(live),
        expired=sum(session.expires_in <= 0 and not session.left for session in sessions),
        quiet=sum(session.command is not None for session in live),
        slots=sum(one.slots for one in vitals),
        running=running,
        reserved=sum(session.running for session in live) - running,
    )


def count_handlers(session: SessionInfo) -> int:
    """Return the most handlers that a worker runs now: the jobs that it holds, up to its slots.

    `Vitals.busy` is as old as the last heartbeat.
    """
    slots = session.vitals.slots if session.vitals is not None else session.running
    return min(session.running, slots)


OVERVIEW = DashboardPage(
    path="",
    title="Overview",
    section="Overview",
    read=read_overview,
    template="overview.html",
    tables=("queues", "groups", "checks"),
)
