"""Statistics: what happened to jobs, by interval, queue and name."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from nimburion.core.metrics.histogram import BUCKETS_PER_DECADE
from nimburion.core.metrics.statistics import (
    STEPS,
    Statistics,
    choose_step,
)
from nimburion.server.api.names import END, Name, PageQuery, Time, to_epoch
from nimburion.server.api.operation import ApiRequest, NoBody, Operation

_HOUR = 3600.0
MAX_INTERVALS_AT_ONCE = 64
"""The most intervals that one read returns. The first returns one, as an interval may have a row
for each of thousands of names; while rows are missing, the next one returns twice as many.
"""


_CURSOR_SCHEMA = r"^[0-9]{1,12}/[A-Za-z0-9_.:-]{1,128}/[A-Za-z0-9_.:-]{1,128}" + END


class StatisticsQuery(PageQuery, frozen=True, forbid_unknown_fields=True):
    """The statistics to list."""

    after: Annotated[str, Meta(pattern=_CURSOR_SCHEMA)] | None = None
    since: Time | None = None
    """The default is one hour before `until`."""
    until: Time | None = None
    """The default is now."""
    step: Literal[60, 600, 3600] | None = None
    """The length of the intervals in seconds; the default is the shortest that is kept."""
    queue: Name | None = None
    name: Name | None = None


class StatisticsPage(msgspec.Struct, frozen=True, kw_only=True):
    """A page of statistics, by start, queue and name. Intervals without jobs are missing."""

    step: int
    intervals: list[Statistics]
    buckets_per_decade: int = BUCKETS_PER_DECADE
    """Bucket n holds the times above 10 ** ((n - 1) / this number) seconds, up to
    10 ** (n / this number) seconds."""
    next: str | None


async def list_statistics(request: ApiRequest[StatisticsQuery, NoBody]) -> StatisticsPage:
    """List what happened to jobs: counts, and histograms of wait and run times.

    To read further pages, pass `since`, `until` and `step` again. A page reads only the intervals
    that it returns, and the next ones.
    """
    query, backend = request.query, request.services.backend
    now = await backend.now()
    until, since = to_epoch(query.until), to_epoch(query.since)
    until = now if until is None else until
    since = until - _HOUR if since is None else since
    step = query.step or choose_step(since, until, now)
    since = max(since, now - STEPS[step] - step)  # older ones are not kept
    until = min(until, now + step)
    after = None if query.after is None else _parse_cursor(query.after)
    start = since if after is None else max(since, after[0])
    rows: list[Statistics] = []
    count = 1
    while start < until and len(rows) <= query.limit:
        end = min((start // step + count) * step, until)
        found = await backend.reads.list_statistics(
            start, end, step, queue=query.queue, name=query.name
        )
        rows += [row for row in found if after is None or (row.start, row.queue, row.name) > after]
        start, count = end, min(2 * count, MAX_INTERVALS_AT_ONCE)
    page = rows[: query.limit]
    more = len(rows) > query.limit
    return StatisticsPage(step=step, intervals=page, next=_make_cursor(page[-1]) if more else None)


def _make_cursor(row: Statistics) -> str:
    return f"{row.start}/{row.queue}/{row.name}"


def _parse_cursor(text: str) -> tuple[int, str, str]:
    start, queue, name = text.split("/")
    return int(start), queue, name


OPERATIONS = (
    Operation(
        method="GET",
        path="/statistics",
        handle=list_statistics,
        query=StatisticsQuery,
        answer=StatisticsPage,
    ),
)
