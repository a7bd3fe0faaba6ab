"""The page of jobs: found by qualifiers, page by page."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.dead_letters import PurgeReport, ReplayReport
from nimburion.actions.search import (
    QUALIFIERS,
    SEARCH_BUDGET,
    UnusableSearch,
    format_qualifier,
    parse_search,
)
from nimburion.core.backend import Backend
from nimburion.core.job import JobRecord
from nimburion.core.queries import JobFilter, Page
from nimburion.server.api import dead_letters as dead_letter_operations
from nimburion.server.api import jobs as job_operations
from nimburion.server.api.jobs import CancelReport, JobSummary, RunNowReport, summarize_job
from nimburion.server.api.names import Cursor
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.pages.jobs.job_contents import MAX_READ_BYTES, shorten_arguments

PAGE_SIZE = 50
ID_BUDGET = 2_000
"""The newest jobs that are examined for a part of an id."""
MIN_ID_CHARACTERS = 4


SearchText = Annotated[str, Meta(max_length=512)]
"""Qualifiers, as the reader wrote them."""


class JobListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs to show."""

    q: SearchText = ""
    """Qualifiers like `state:failed queue:mail`; a job must match all."""
    after: Cursor | None = None


class JobRow(JobSummary, frozen=True, kw_only=True):
    """A job in the list."""

    arguments: str
    """The beginning of its arguments; empty without the right `payloads`."""


class JobListData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs, most recently enqueued first."""

    jobs: list[JobRow]
    next: str | None
    examined: int
    partial: bool = False
    """The search ended after `SEARCH_BUDGET` jobs: older ones may match. `next` continues there."""
    invalid: str | None = None
    """Why the qualifiers cannot be used; no job is listed then."""
    now: float
    """When the page was read, in epoch seconds."""
    only: str | None = None
    """The id of the job that an id alone, or a part of one, names."""


async def read_jobs(request: PageRequest[JobListQuery]) -> JobListData:
    """Search for jobs, within the budget."""
    readings, query = request.readings, request.query
    payloads = "payloads" in request.caller.rights
    try:
        which = parse_search(query.q, readings.now)
    except UnusableSearch as error:
        return JobListData(jobs=[], next=None, examined=0, invalid=str(error), now=readings.now)

    async def read() -> JobListData:
        page = await readings.backend.reads.list_jobs(
            which,
            limit=PAGE_SIZE,
            after=query.after,
            payloads=payloads,
            payload_bytes=MAX_READ_BYTES,
            budget=SEARCH_BUDGET,
        )
        is_id = which == JobFilter(ids=which.ids) and len(which.ids or ()) == 1
        if not page.jobs and is_id:
            page = await _find_similar_ids(readings.backend, query.q.strip())
        return JobListData(
            jobs=[make_row(job) for job in page.jobs],
            next=page.next,
            examined=page.examined,
            partial=page.next is not None and len(page.jobs) < PAGE_SIZE,
            now=readings.now,
            only=page.jobs[0].id if is_id and len(page.jobs) == 1 else None,
        )

    return await readings.read(f"jobs {which} {query.after} {payloads}", read)


def make_row(job: JobRecord) -> JobRow:
    """Return the row of one job. Its arguments are shown if its payload was read."""
    arguments = shorten_arguments(job.payload)
    return JobRow(**msgspec.structs.asdict(summarize_job(job)), arguments=arguments)


async def _find_similar_ids(backend: Backend, text: str) -> Page:
    """Return the newest jobs whose id begins or ends with a text, as pages shorten it."""
    part = text.removeprefix("id:")
    newest = await backend.reads.list_jobs(limit=ID_BUDGET)
    found = [
        job
        for job in newest.jobs
        if len(part) >= MIN_ID_CHARACTERS and (job.id.startswith(part) or job.id.endswith(part))
    ]
    return Page(found[:PAGE_SIZE], None, newest.examined)


def find_only_job(data: JobListData) -> str | None:
    """Return the page of the job that an id alone names."""
    return None if data.only is None else f"/jobs/{data.only}"


JOBS = DashboardPage(
    path="/jobs",
    title="Jobs",
    section="Jobs",
    read=read_jobs,
    template="jobs/jobs.html",
    tables=("jobs",),
    query=JobListQuery,
    redirect=find_only_job,
    constants={"qualifiers": QUALIFIERS, "format_qualifier": format_qualifier},
)


def describe_cancel(report: CancelReport) -> str:
    """Return what happened to the jobs that were to be cancelled."""
    outcomes = [job.outcome for job in report.jobs]
    parts = {
        "cancelled": "cancelled",
        "requested": "asked to end",
        "finished": "already finished",
        "not found": "not found",
    }
    counts = [f"{outcomes.count(key)} {text}" for key, text in parts.items() if key in outcomes]
    return f"Jobs: {', '.join(counts) or 'none selected'}."


def describe_run_now(report: RunNowReport) -> str:
    """Return what happened to the jobs that were to run now."""
    outcomes = [job.outcome for job in report.jobs]
    unchanged = outcomes.count("unchanged")
    misses = f" {unchanged} waited for no later time." if unchanged else ""
    missing = " Some were not found." if "not found" in outcomes else ""
    return f"{outcomes.count('due')} are due now.{misses}{missing}"


def describe_replay(report: ReplayReport) -> str:
    """Return what a replay did."""
    held = f" {len(report.held)} wait: another job holds their unique key." if report.held else ""
    misses = len(report.not_replayed)
    missed = f" {misses} are no dead letters." if misses else ""
    return f"{len(report.replayed)} replayed.{held}{missed}"


def describe_purge(report: PurgeReport) -> str:
    """Return what a purge did."""
    misses = len(report.not_purged)
    return f"{len(report.purged)} deleted." + (f" {misses} are no dead letters." if misses else "")


BACK_TO_JOBS = "/jobs"

ACTIONS = (
    DashboardAction(
        path="/jobs/cancel",
        operation=find_operation(job_operations.OPERATIONS, "cancel_jobs"),
        done="The selected jobs are cancelled, or asked to end.",
        back=BACK_TO_JOBS,
        describe=describe_cancel,
    ),
    DashboardAction(
        path="/jobs/run-now",
        operation=find_operation(job_operations.OPERATIONS, "run_jobs_now"),
        done="The selected jobs that waited for a later time are due now.",
        back=BACK_TO_JOBS,
        describe=describe_run_now,
    ),
    DashboardAction(
        path="/jobs/replay",
        operation=find_operation(dead_letter_operations.OPERATIONS, "replay_dead_letters"),
        done="The selected dead letters are replayed.",
        back=BACK_TO_JOBS,
        describe=describe_replay,
    ),
    DashboardAction(
        path="/jobs/purge",
        operation=find_operation(dead_letter_operations.OPERATIONS, "purge_dead_letters"),
        done="The selected dead letters are deleted.",
        back=BACK_TO_JOBS,
        describe=describe_purge,
    ),
)
