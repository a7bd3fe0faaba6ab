"""The page of limits: how full they are, what waits, who holds them, and how to change them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.limits import (
    LIMIT_PATTERN,
    LimitInfo,
    closes_lane,
    get_limited_queue,
    make_job_limit_name,
    make_queue_limit_name,
)
from nimburion.server.api import limits as limit_operations
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.readings import SIDE_AGE, UPDATE_AGE

MAX_LIMITS = 200
MAX_KEY_CHARACTERS = 512


class LimitsQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which limit to show, and for which key its form is open."""

    limit: Annotated[str, Meta(pattern=LIMIT_PATTERN)] | None = None
    """One limit. The form can make it, if it is that of a job name or of a queue."""
    key: Annotated[str, Meta(max_length=MAX_KEY_CHARACTERS)] | None = None


class LimitRow(msgspec.Struct, frozen=True, kw_only=True):
    """One limit."""

    limit: LimitInfo
    queue: str | None
    """The queue that it limits as a whole; None: it limits a job name, or counts by key."""
    has_keys: bool
    maximum: int | None
    """The largest number of jobs of one key; None: only a rate."""
    rate: str | None
    burst: int | None
    waiting: int
    """The jobs of its name that wait, due or not; for other limits those that wait for a key."""
    is_full: bool
    """Whether no more jobs may start, of a key for which jobs wait."""


class LimitsData(msgspec.Struct, frozen=True, kw_only=True):
    """The limits, full ones with waiting jobs first; at most `MAX_LIMITS`."""

    limits: list[LimitRow]
    total: int


async def read_limits(request: PageRequest[LimitsQuery]) -> LimitsData:
    """Read all limits, and the waiting jobs of their names."""
    readings = request.readings
    limits = await readings.list_limits(UPDATE_AGE)
    waiting: dict[str, int] = {}
    for queue in await readings.list_queues(SIDE_AGE):
        waiting[make_queue_limit_name(queue.name)] = queue.size
        for name, count in queue.names.items():
            limit = make_job_limit_name(name)
            waiting[limit] = waiting.get(limit, 0) + count
    wanted = request.query.limit
    if wanted is not None:
        limits = [limit for limit in limits if limit.name == wanted] or [LimitInfo(name=wanted)]
    rows = [make_row(limit, waiting) for limit in limits]
    rows.sort(key=lambda row: (not (row.is_full and row.waiting), row.limit.name))
    return LimitsData(limits=rows[:MAX_LIMITS], total=len(rows))


def make_row(limit: LimitInfo, waiting_by_limit: Mapping[str, int]) -> LimitRow:
    """Return the row of a limit.

    `waiting_by_limit`: the waiting jobs whose lanes a limit of a job name or a queue closes.
    """
    queue = get_limited_queue(limit.name)
    maximum, rate = limit.concurrency, limit.rate
    rates = sorted({rule.rate.rate for rule in limit.rules.values() if rule.rate})
    if closes_lane(limit.name):
        waiting = waiting_by_limit.get(limit.name, 0)
        is_full = limit.opens_at is not None or (maximum is not None and limit.in_use >= maximum)
    else:
        waiting, is_full = limit.parked, limit.parked > 0
    return LimitRow(
        limit=limit,
        queue=queue,
        has_keys=not closes_lane(limit.name),
        maximum=maximum,
        rate=" or ".join(rates) or None,
        burst=None if rate is None else rate.burst,
        waiting=waiting,
        is_full=is_full,
    )


LIMITS = DashboardPage(
    path="/limits",
    title="Limits",
    section="Limits",
    read=read_limits,
    template="limits.html",
    tables=("limits",),
    query=LimitsQuery,
)

ACTIONS = (
    DashboardAction(
        path="/limits/{limit}/change",
        operation=find_operation(limit_operations.OPERATIONS, "change_limit"),
        done="The limit {limit} is changed.",
        back="/limits",
    ),
    DashboardAction(
        path="/limits/{limit}/reset",
        operation=find_operation(limit_operations.OPERATIONS, "reset_limit"),
        done="What the workers declare for {limit} applies again.",
        back="/limits",
    ),
)
