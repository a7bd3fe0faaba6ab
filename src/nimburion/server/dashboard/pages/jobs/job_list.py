"""The page of jobs: found by qualifiers, page by page."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.actions.dead_letters import PurgeReport, ReplayReport
from nimburion.core.backend import Backend
from nimburion.core.errors import InvalidJob
from nimburion.core.job import Reason, State
from nimburion.core.queries import JobFilter, Page
from nimburion.core.size_limits import check_name
from nimburion.core.text.suggestions import describe_unknown
from nimburion.server.api import dead_letters as dead_letter_operations
from nimburion.server.api import jobs as job_operations
from nimburion.server.api.jobs import CancelReport, JobSummary, RunNowReport, summarize_page
from nimburion.server.api.names import Cursor
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)

PAGE_SIZE = 50
SEARCH_BUDGET = 5_000
"""The records that are examined for one page. The next page continues where this one stopped."""
ID_BUDGET = 2_000
"""The newest jobs that are examined for a part of an id."""
MIN_ID_CHARACTERS = 4
_HOUR = 3600.0
_UNITS = {"m": 60.0, "h": _HOUR, "d": 24 * _HOUR}


SearchText = Annotated[str, Meta(max_length=512)]
"""Qualifiers, as the reader wrote them."""


class JobListQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs to show."""

    q: SearchText = ""
    """Qualifiers like `state:failed queue:mail`; a job must match all."""
    after: Cursor | None = None


class JobListData(msgspec.Struct, frozen=True, kw_only=True):
    """A page of jobs, most recently enqueued first."""

    jobs: list[JobSummary]
    next: str | None
    examined: int
    partial: bool = False
    """The search ended after `SEARCH_BUDGET` jobs: older ones may match. `next` continues there."""
    invalid: str | None = None
    """Why the qualifiers cannot be used; no job is listed then."""
    now: float
    """When the page was read, in epoch seconds."""


class UnusableSearch(ValueError):
    """Qualifiers that cannot be used, with what to write instead."""


def parse_search(text: str, now: float) -> JobFilter:
    """Return the filter for qualifiers. A word without a colon is the id of a job. A value with
    spaces is in quotes: `tenant:"acme inc"`.

    Raises:
        UnusableSearch: a qualifier is unknown, or its value is not allowed.

    >>> parse_search("state:failed,retrying queue:mail", 0.0).queue
    'mail'
    """
    values: dict[str, list[str]] = {}
    for quoted_key, quoted, word in _WORD.findall(text):
        key, colon, value = word.partition(":")
        if quoted_key:
            key, value = quoted_key, quoted
        elif not colon:
            key, value = "id", word
        if key not in QUALIFIERS:
            raise UnusableSearch(describe_unknown("qualifier", [key], QUALIFIERS) or "")
        if not value:
            raise UnusableSearch(f"{key}: give a value behind the colon")
        values.setdefault(key, []).append(value)
    for key, given in values.items():
        if len(given) > 1 and key not in {"state", "id"}:
            raise UnusableSearch(f"{key}: give it once")
    return JobFilter(
        states=_parse_states(",".join(values.get("state", []))),
        ids=tuple(_check_name("id", one) for one in values.get("id", [])) or None,
        queue=_get_name(values, "queue"),
        name=_get_name(values, "name"),
        reason=_parse_reason(values),
        tenant=_get_first(values, "tenant"),
        correlation_id=_get_first(values, "correlation"),
        tag=_get_name(values, "tag"),
        fingerprint=_get_first(values, "fingerprint"),
        min_failures=_parse_number(values, "failures"),
        created_from=_parse_age(values, "created", now),
        finished_from=_parse_age(values, "finished", now),
    )


QUALIFIERS = {
    "state": "state:failed, or several: state:pending,retrying",
    "queue": "queue:mail",
    "name": "name:send_email",
    "id": "id:01a2…, or the id alone, or its first or last characters",
    "tenant": "tenant:acme",
    "correlation": "correlation:req-17",
    "tag": "tag:media",
    "reason": "reason:exhausted (why a job failed)",
    "fingerprint": "fingerprint:0f3a… (of a group of dead letters)",
    "failures": "failures:2 (at least)",
    "created": "created:2h (in the last two hours; m, h or d)",
    "finished": "finished:1d",
}
"""Every qualifier with an example."""


_WORD = re.compile(r'(\w+):"([^"]*)"|(\S+)')
"""A qualifier whose value is in quotes, or any other word."""


def format_qualifier(value: str, key: str) -> str:
    """Return a qualifier, with the value in quotes if it needs them.

    >>> format_qualifier("acme", "tenant"), format_qualifier("acme inc", "tenant")
    ('tenant:acme', 'tenant:"acme inc"')
    """
    return f'{key}:"{value}"' if re.search(r"\s", value) else f"{key}:{value}"


def _parse_states(text: str) -> frozenset[State] | None:
    words = [word for word in text.split(",") if word]
    known = [state.value for state in State]
    problem = describe_unknown("state", words, known)
    if problem is not None:
        raise UnusableSearch(problem)
    return frozenset(State(word) for word in words) or None


def _parse_reason(values: dict[str, list[str]]) -> str | None:
    reason = _get_first(values, "reason")
    problem = describe_unknown("reason", [reason] if reason else [], [one.value for one in Reason])
    if problem is not None:
        raise UnusableSearch(problem)
    return reason


def _parse_number(values: dict[str, list[str]], key: str) -> int | None:
    text = _get_first(values, key)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise UnusableSearch(f"{key}: give a whole number, as in {key}:2")
    return int(text)


def _parse_age(values: dict[str, list[str]], key: str, now: float) -> float | None:
    """Return the time from which on jobs match."""
    text = _get_first(values, key)
    if text is None:
        return None
    number, unit = text[:-1], _UNITS.get(text[-1])
    if unit is None or not (number.isascii() and number.isdigit() and len(number) <= 5):
        raise UnusableSearch(f"{key}: give an age in m, h or d, as in {key}:2h")
    return (now - int(number) * unit) // 10 * 10  # equal for some seconds: reads are shared


def _get_name(values: dict[str, list[str]], key: str) -> str | None:
    text = _get_first(values, key)
    return None if text is None else _check_name(key, text)


def _check_name(key: str, text: str) -> str:
    try:
        return check_name(key, text)
    except InvalidJob as error:
        raise UnusableSearch(str(error)) from None


def _get_first(values: dict[str, list[str]], key: str) -> str | None:
    return next(iter(values.get(key, ())), None)


async def read_jobs(request: PageRequest[JobListQuery]) -> JobListData:
    """Search for jobs, within the budget."""
    readings, query = request.readings, request.query
    try:
        which = parse_search(query.q, readings.now)
    except UnusableSearch as error:
        return JobListData(jobs=[], next=None, examined=0, invalid=str(error), now=readings.now)

    async def read() -> JobListData:
        page = await readings.backend.reads.list_jobs(
            which, limit=PAGE_SIZE, after=query.after, budget=SEARCH_BUDGET
        )
        if not page.jobs and which == JobFilter(ids=which.ids) and len(which.ids or ()) == 1:
            page = await _find_similar_ids(readings.backend, query.q.strip())
        shown = summarize_page(page)
        return JobListData(
            jobs=shown.jobs,
            next=shown.next,
            examined=shown.examined,
            partial=shown.next is not None and len(shown.jobs) < PAGE_SIZE,
            now=readings.now,
        )

    return await readings.read(f"jobs {which} {query.after}", read)


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


JOBS = DashboardPage(
    path="/jobs",
    title="Jobs",
    section="Jobs",
    read=read_jobs,
    template="jobs/jobs.html",
    tables=("jobs",),
    query=JobListQuery,
    constants={"qualifiers": QUALIFIERS},
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
