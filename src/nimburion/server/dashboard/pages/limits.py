"""The page of limits: how full they are, what waits, who holds them, and how to change them."""

from __future__ import annotations

import msgspec

from nimburion.core.keyed_limits import KeyedLimitInfo, get_limited_queue
from nimburion.core.limit_changes import LimitChange
from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo
from nimburion.server.api import limits as limit_operations
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.page import (
    DashboardAction,
    DashboardPage,
    PageRequest,
    find_operation,
)
from nimburion.server.dashboard.readings import SIDE_AGE, UPDATE_AGE

MAX_LIMITS = 200


class LimitRow(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency limit."""

    limit: LimitInfo
    waiting: int
    """The jobs of its name that wait, due or not."""
    is_full: bool
    change: LimitChange | None
    """How an operator changed the limit of the name."""


class RateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One rate limit."""

    rate: RateInfo
    waiting: int
    """The jobs of its name that wait, due or not."""
    change: LimitChange | None


class KeyedRow(msgspec.Struct, frozen=True, kw_only=True):
    """One limit by key."""

    limit: KeyedLimitInfo
    maximum: int | None
    """The largest number of jobs of one key; None: only a rate."""
    rate: str | None
    changes: list[LimitChange]
    """How operators changed the limit and single keys of it."""
    queue: str | None
    """The queue that it limits as a whole; None: it counts by key."""


class LimitsData(msgspec.Struct, frozen=True, kw_only=True):
    """The limits, exhausted ones with waiting jobs first; at most `MAX_LIMITS` of each kind."""

    limits: list[LimitRow]
    total: int
    """The number of concurrency limits."""
    rates: list[RateRow]
    rate_total: int
    keyed: list[KeyedRow]
    keyed_total: int


async def read_limits(request: PageRequest[NoQuery]) -> LimitsData:
    """Read all limits with their holders, and the waiting jobs of their names."""
    readings = request.readings
    limits = await readings.list_limits(UPDATE_AGE)
    rates = await readings.read("rates", readings.backend.reads.list_rates, SIDE_AGE)
    keyed = await readings.read("keyed-limits", readings.backend.reads.list_keyed_limits, 5.0)
    changes = await readings.read(
        "limit-changes", readings.backend.reads.list_limit_changes, SIDE_AGE
    )
    changed = {change.name: change for change in changes if change.key is None}
    waiting: dict[str, int] = {}
    for queue in await readings.list_queues(SIDE_AGE):
        for name, count in queue.names.items():
            waiting[name] = waiting.get(name, 0) + count
    rows = [
        LimitRow(
            limit=limit,
            waiting=waiting.get(limit.name, 0),
            is_full=limit.in_use >= limit.limit,
            change=changed.get(limit.name),
        )
        for limit in limits
    ]
    rows.sort(key=lambda row: (not (row.is_full and row.waiting), row.limit.name))
    rate_rows = [
        RateRow(rate=rate, waiting=waiting.get(rate.name, 0), change=changed.get(rate.name))
        for rate in rates
    ]
    rate_rows.sort(key=lambda row: (not (row.waiting and not row.rate.room), row.rate.name))
    return LimitsData(
        limits=rows[:MAX_LIMITS],
        total=len(rows),
        rates=rate_rows[:MAX_LIMITS],
        rate_total=len(rate_rows),
        keyed=[make_keyed_row(limit, changes) for limit in keyed[:MAX_LIMITS]],
        keyed_total=len(keyed),
    )


def make_keyed_row(limit: KeyedLimitInfo, changes: list[LimitChange]) -> KeyedRow:
    """Return the row of a limit by key."""
    maxima = [one.concurrency for one in limit.jobs.values() if one.concurrency is not None]
    rates = {one.rate.rate for one in limit.jobs.values() if one.rate is not None}
    return KeyedRow(
        limit=limit,
        maximum=max(maxima, default=None),
        rate=" or ".join(sorted(rates)) or None,
        changes=[change for change in changes if change.name == limit.name],
        queue=get_limited_queue(limit.name),
    )


LIMITS = DashboardPage(
    path="/limits",
    title="Limits",
    section="Limits",
    read=read_limits,
    template="limits.html",
    tables=("limits", "rates", "keyed"),
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
