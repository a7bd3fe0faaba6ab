"""Concurrency limits, the jobs that count against them, and rate limits."""

from __future__ import annotations

import msgspec

from nimburion.core.keyed_limits import KeyUse
from nimburion.core.rate_limits import RateInfo
from nimburion.core.session import LimitInfo
from nimburion.server.api.names import PageQuery
from nimburion.server.api.operation import ApiRequest, NoBody, Operation


class LimitPage(msgspec.Struct, frozen=True):
    """The concurrency limits and the rate limits of a page of job names."""

    limits: list[LimitInfo]
    rates: list[RateInfo]
    keys: list[KeyUse]
    """The first 100 keys of limits by key that are in use or for which jobs wait, on each page."""
    next: str | None


async def list_limits(request: ApiRequest[PageQuery, NoBody]) -> LimitPage:
    """List concurrency limits, with the jobs that have held them longest, and rate limits."""
    after, size = request.query.after, request.query.limit
    limits = await request.services.backend.list_limits()
    rates = await request.services.backend.list_rates()
    names = {limit.name for limit in limits} | {rate.name for rate in rates}
    rest = sorted(name for name in names if after is None or name > after)
    page = set(rest[:size])
    return LimitPage(
        [limit for limit in limits if limit.name in page],
        [rate for rate in rates if rate.name in page],
        await request.services.backend.list_key_uses(100),
        rest[size - 1] if len(rest) > size else None,
    )


OPERATIONS = (
    Operation(
        method="GET",
        path="/limits",
        right="read",
        handle=list_limits,
        query=PageQuery,
        answer=LimitPage,
    ),
)
