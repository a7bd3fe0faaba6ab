"""The page of limits: how full they are, what waits, and who holds them."""

from __future__ import annotations

import msgspec

from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo
from nimburion.server.api.operation import NoQuery
from nimburion.server.dashboard.page import DashboardPage, PageRequest

MAX_LIMITS = 200


class LimitRow(msgspec.Struct, frozen=True, kw_only=True):
    """One concurrency limit."""

    limit: LimitInfo
    waiting: int
    """The jobs of its name that wait, due or not."""
    is_full: bool


class RateRow(msgspec.Struct, frozen=True, kw_only=True):
    """One rate limit."""

    rate: RateInfo
    waiting: int
    """The jobs of its name that wait, due or not."""


class LimitsData(msgspec.Struct, frozen=True, kw_only=True):
    """The limits, exhausted ones with waiting jobs first; at most `MAX_LIMITS` of each kind."""

    limits: list[LimitRow]
    total: int
    """The number of concurrency limits."""
    rates: list[RateRow]
    rate_total: int


async def read_limits(request: PageRequest[NoQuery]) -> LimitsData:
    """Read all limits with their holders, and the waiting jobs of their names."""
    readings = request.readings
    limits = await readings.list_limits()
    rates = await readings.read("rates", readings.backend.list_rates, 2.0)
    waiting: dict[str, int] = {}
    for queue in await readings.list_queues():
        for name, count in queue.names.items():
            waiting[name] = waiting.get(name, 0) + count
    rows = [
        LimitRow(
            limit=limit, waiting=waiting.get(limit.name, 0), is_full=limit.in_use >= limit.limit
        )
        for limit in limits
    ]
    rows.sort(key=lambda row: (not (row.is_full and row.waiting), row.limit.name))
    rate_rows = [RateRow(rate=rate, waiting=waiting.get(rate.name, 0)) for rate in rates]
    rate_rows.sort(key=lambda row: (not (row.waiting and not row.rate.room), row.rate.name))
    return LimitsData(
        limits=rows[:MAX_LIMITS],
        total=len(rows),
        rates=rate_rows[:MAX_LIMITS],
        rate_total=len(rate_rows),
    )


LIMITS = DashboardPage(
    path="/limits",
    title="Limits",
    section="Limits",
    read=read_limits,
    template="limits.html",
    interval=2.0,
)
