"""Concurrency limits, and the jobs that count against them."""

from __future__ import annotations

import msgspec

from nimburion.core.session import LimitInfo
from nimburion.server.api.names import PageQuery
from nimburion.server.api.operation import ApiRequest, NoBody, Operation


class LimitPage(msgspec.Struct, frozen=True):
    """A page of concurrency limits, by name."""

    limits: list[LimitInfo]
    next: str | None


async def list_limits(request: ApiRequest[PageQuery, NoBody]) -> LimitPage:
    """List concurrency limits, with the jobs that have held them longest."""
    after, size = request.query.after, request.query.limit
    found = await request.services.backend.list_limits()
    rest = [limit for limit in found if after is None or limit.name > after]
    return LimitPage(rest[:size], rest[size - 1].name if len(rest) > size else None)


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
