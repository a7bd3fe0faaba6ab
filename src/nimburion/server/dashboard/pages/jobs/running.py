"""The page of running jobs: the longest first, late ones marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Literal

import msgspec

from nimburion.core.diagnosis.running_jobs import read_usual_times
from nimburion.core.session import SessionInfo
from nimburion.jobs.processor import Processor
from nimburion.server.api import jobs as job_operations
from nimburion.server.api.jobs import JobSummary, summarize_page
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.pages.jobs.job import describe_cancelled
from nimburion.server.dashboard.readings import PageReadings


class RunningRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job that runs."""

    job: JobSummary
    pid: int | None
    """The process that runs it; None if its session is not known."""
    beside: int
    """How many others of these jobs its worker runs."""
    seconds: float
    """How long it has been running."""
    deadline: float | None
    """When it times out, in epoch seconds; None without a timeout, or if this server does not know
    the name of the job.
    """
    usual: float | None
    """The seconds within which 95 % of the attempts of its name ended in the present hour and the
    one before.
    """
    late: Literal["no", "slow", "overdue"]
    """`slow`: it runs for longer than usual. `overdue`: its deadline is past."""


class RunningData(msgspec.Struct, frozen=True, kw_only=True):
    """The jobs that run, the longest first."""

    jobs: list[RunningRow]
    more: bool
    """Whether more jobs run than are shown."""


async def read_running(request: PageRequest[NoQuery]) -> RunningData:
    """Read the jobs that are processing, their workers, and the usual times of their names."""
    readings = request.readings
    page = await readings.list_running()
    sessions = {session.id: session for session in await readings.list_sessions()}
    usual = await _read_usual_times(readings)
    processor = request.services.processor
    jobs = summarize_page(page).jobs
    held = Counter(job.session for job in jobs)
    rows = [
        _make_row(
            job,
            beside=held[job.session] - 1,
            sessions=sessions,
            timeout=job.timeout if job.timeout is not None else _find_timeout(processor, job.name),
            usual=usual.get(job.name),
            now=readings.now,
        )
        for job in jobs
    ]
    rows.sort(key=lambda row: (-row.seconds, row.job.id))
    return RunningData(jobs=rows, more=page.next is not None)


async def _read_usual_times(readings: PageReadings) -> dict[str, float]:
    """Return the time within which 95 % of the attempts of each name ended lately."""
    return await readings.read(
        "usual times", lambda: read_usual_times(readings.backend, readings.now), 30.0
    )


def _find_timeout(processor: Processor | None, name: str) -> float | None:
    handler = None if processor is None else processor.registry.get(name)
    return None if handler is None else handler.policy.timeout


def _make_row(
    job: JobSummary,
    *,
    beside: int,
    sessions: Mapping[str, SessionInfo],
    timeout: float | None,
    usual: float | None,
    now: float,
) -> RunningRow:
    session = sessions.get(job.session or "")
    started = job.started_at or now
    seconds = max(0.0, now - started)
    deadline = None if timeout is None else started + timeout
    late: Literal["no", "slow", "overdue"] = "no"
    if deadline is not None and now > deadline:
        late = "overdue"
    elif usual is not None and seconds > usual:
        late = "slow"
    return RunningRow(
        job=job,
        pid=None if session is None else session.pid,
        beside=beside,
        seconds=seconds,
        deadline=deadline,
        usual=usual,
        late=late,
    )


RUNNING = DashboardPage(
    path="/running",
    title="Running",
    section="Running",
    read=read_running,
    template="jobs/running.html",
    tables=("jobs",),
)

ACTIONS = (
    DashboardAction(
        path="/running/{id}/cancel",
        operation=find_operation(job_operations.OPERATIONS, "cancel_job"),
        done="The worker of job {id} is asked to end it.",
        back="/running",
        describe=describe_cancelled,
    ),
)
