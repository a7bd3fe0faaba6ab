"""The search of all pages: from an id, a name, a tenant or a key to its page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal
from urllib.parse import quote, urlencode

import msgspec

from nimburion.actions.search import UnusableSearch, format_qualifier, parse_search
from nimburion.core.errors import InvalidJob, JobNotFound
from nimburion.core.flows import FlowInfo
from nimburion.core.job import JobRecord
from nimburion.core.size_limits import check_name
from nimburion.core.text.suggestions import find_nearest
from nimburion.server.dashboard.page import DashboardPage, PageRequest
from nimburion.server.dashboard.pages.jobs.job_list import (
    ID_BUDGET,
    MIN_ID_CHARACTERS,
    SearchText,
)
from nimburion.server.dashboard.readings import PageReadings

MAX_MATCHES = 50
MAX_FLOWS = 200
"""The newest flows that are examined for names and the ends of ids."""


class SearchInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to search for."""

    q: SearchText = ""


class SearchMatch(msgspec.Struct, frozen=True, order=True):
    """Something that the text names."""

    kind: Literal[
        "job",
        "flow",
        "queue",
        "name",
        "tenant",
        "key",
        "tag",
        "correlation",
        "dead letters",
        "worker",
        "host",
        "jobs",
    ]
    label: str
    path: str
    """The page, below `/dashboard`."""


class SearchData(msgspec.Struct, frozen=True, kw_only=True):
    """What the text names. One match is opened at once."""

    matches: list[SearchMatch]
    examined: int
    """The newest jobs that were examined for tenants, tags, keys and parts of ids."""
    nearest: str | None = None
    """The most similar queue or name; None unless nothing matches."""
    invalid: str | None = None
    """Why the text cannot be used as qualifiers."""


async def search(request: PageRequest[SearchInput]) -> SearchData:
    """Find what a text names. The id of a job comes first, then qualifiers, then all else."""
    text, readings = request.query.q.strip(), request.readings
    if not text:
        return SearchData(matches=[], examined=0)
    if await _has_job(readings, text):
        return SearchData(matches=[SearchMatch("job", text, f"/jobs/{text}")], examined=0)
    known = await _read_names(readings)
    found = set(_find_names(known, text))
    if await _has_flow(readings, text):
        found.add(SearchMatch("flow", text, f"/flows/{text}"))
    page = await readings.read("newest jobs", lambda: _read_newest(readings), 4.0)
    for job in page:
        found.update(_find_in_job(job, text))
    matches = sorted(found)[:MAX_MATCHES]
    nearest, invalid = None, None
    if not matches and ":" in text:
        try:
            parse_search(text, readings.now)
            matches = [SearchMatch("jobs", text, f"/jobs?{urlencode({'q': text})}")]
        except UnusableSearch as error:
            invalid = str(error)
    elif not matches:
        nearest = find_nearest(text, {label for _, label, _ in known})
    return SearchData(matches=matches, examined=len(page), nearest=nearest, invalid=invalid)


async def _has_job(readings: PageReadings, text: str) -> bool:
    async def read() -> bool:
        try:
            await readings.backend.reads.get_job(check_name("id", text))
        except (JobNotFound, InvalidJob):
            return False
        return True

    return await readings.read(f"has job {text}", read)


async def _has_flow(readings: PageReadings, text: str) -> bool:
    """Return whether it is the id of a flow, however old, and not of a group."""

    async def read() -> bool:
        try:
            found = await readings.backend.reads.get_flow(check_name("flow id", text))
        except InvalidJob:
            return False
        return bool(found) and found[0].parent is None

    return await readings.read(f"has flow {text}", read)


async def _read_newest(readings: PageReadings) -> list[JobRecord]:
    return (await readings.backend.reads.list_jobs(limit=ID_BUDGET)).jobs


async def _read_flows(readings: PageReadings) -> list[FlowInfo]:
    return (await readings.backend.reads.list_flows(limit=MAX_FLOWS)).flows


_Kind = Literal["flow", "queue", "name", "key", "worker", "host"]
_Named = tuple[_Kind, str, str]
"""Kind, label and page of something with a name."""


async def _read_names(readings: PageReadings) -> list[_Named]:
    """Return what has a name and is no job."""
    queues, sessions = await readings.list_queues(4.0), await readings.list_sessions()
    known = {queue.name for queue in queues}.union(*(session.queues for session in sessions))
    named: set[_Named] = {("queue", one, f"/queues/{one}") for one in known}
    names = {name for queue in queues for name in queue.names}
    names |= {name for session in sessions for name in session.names}
    named |= {("name", name, _make_jobs_path(name, "name")) for name in names}
    for flow in await readings.read("newest flows", lambda: _read_flows(readings), 4.0):
        named.add(("flow", flow.id, f"/flows/{flow.id}"))
        named.add(("flow", flow.name, f"/flows?{urlencode({'name': flow.name})}"))
    hosts: dict[str, str] = {}
    for session in sessions:
        named.add(("worker", session.id, f"/workers#worker-{session.id}"))
        hosts.setdefault(session.host, f"/workers#worker-{session.id}")
    named |= {("host", host, path) for host, path in hosts.items()}
    for limit in await readings.list_limits():
        path = f"/limits?{urlencode({'limit': limit.name})}"
        named.add(("key", limit.name, path))
        named |= {
            ("key", use.key, f"{path}&{urlencode({'key': use.key})}")
            for use in limit.fullest
            if use.key
        }
    return sorted(named)


def _make_jobs_path(value: str, key: str) -> str:
    return f"/jobs?q={quote(format_qualifier(value, key))}"


def _find_names(known: list[_Named], text: str) -> Iterator[SearchMatch]:
    if re.fullmatch("[0-9a-f]{16}", text):
        yield SearchMatch("dead letters", text, f"/dead-letters/{text}")
    for kind, label, path in known:
        is_part = (
            kind in {"worker", "flow"} and len(text) >= MIN_ID_CHARACTERS and label.endswith(text)
        )
        # `nimburion jobs running` shows the beginning of the id of a worker.
        is_start = kind == "worker" and len(text) >= MIN_ID_CHARACTERS and label.startswith(text)
        if label == text or is_part or is_start:
            yield SearchMatch(kind, label, path)


def _find_in_job(job: JobRecord, text: str) -> Iterator[SearchMatch]:
    options = job.options
    if len(text) >= MIN_ID_CHARACTERS and (job.id.startswith(text) or job.id.endswith(text)):
        yield SearchMatch("job", job.id, f"/jobs/{job.id}")
    if job.name == text:
        yield SearchMatch("name", text, _make_jobs_path(text, "name"))
    if options.tenant == text:
        yield SearchMatch("tenant", text, _make_jobs_path(text, "tenant"))
    if options.correlation_id == text:
        yield SearchMatch("correlation", text, _make_jobs_path(text, "correlation"))
    if text in options.tags:
        yield SearchMatch("tag", text, _make_jobs_path(text, "tag"))
    for limit, key in options.limit_keys.items():
        if key == text:
            path = f"/limits?{urlencode({'limit': limit, 'key': key})}"
            yield SearchMatch("key", text, path)


def find_only_match(data: SearchData) -> str | None:
    """Return the page to open: that of the only match."""
    return data.matches[0].path if len(data.matches) == 1 else None


SEARCH = DashboardPage(
    path="/search",
    title="Search",
    section="Jobs",
    read=search,
    template="search.html",
    tables=("matches",),
    query=SearchInput,
    interval=None,
    redirect=find_only_match,
)
