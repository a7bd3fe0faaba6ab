"""Limits: list them, and change them at run time."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.limits import MAX_CONCURRENCY, LimitChange, LimitInfo
from nimburion.core.rate_limits import MAX_UNITS
from nimburion.core.size_limits import MAX_TEXT
from nimburion.server.api.body_rules import need, require_one
from nimburion.server.api.names import END, PageQuery, ReasonText
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation

Key = Annotated[str, Meta(max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f-\x9f]*" + END)]


class LimitPage(msgspec.Struct, frozen=True):
    """A page of limits, ordered by name."""

    limits: list[LimitInfo]
    """With their fullest keys, the jobs that hold them longest, and what operators changed."""
    next: str | None


class ChangeLimitBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A change of a limit. Fields that are left out stay as an earlier change set them."""

    concurrency: Annotated[int, Meta(ge=0, le=MAX_CONCURRENCY)] | None = None
    """How many jobs may run at once; 0: none."""
    rate: Annotated[str, Meta(max_length=100, extra_json_schema={"format": "rate"})] | None = None
    """How many units may start in a time: `100/min`."""
    burst: Annotated[int, Meta(ge=1, le=MAX_UNITS)] | None = None
    """How many units may start at once; only with `rate`."""
    key: Key | None = None
    """Change only this key of a shared limit."""
    reason: ReasonText = ""
    """Shown wherever the limit is."""


class ResetLimitBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which change ends."""

    key: Key | None = None
    """End the change of this key; none: the change of the limit itself."""
    reason: ReasonText = ""
    """Kept in the audit record."""


class LimitState(msgspec.Struct, frozen=True):
    """The changes of one limit that are in force."""

    name: str
    changes: list[LimitChange]


async def list_limits(request: ApiRequest[PageQuery, NoBody]) -> LimitPage:
    """List limits: what they allow, who changed them, and what is in use."""
    after, size = request.query.after, request.query.limit
    limits = await request.services.backend.reads.list_limits()
    rest = [limit for limit in limits if after is None or limit.name > after]
    return LimitPage(rest[:size], rest[size - 1].name if len(rest) > size else None)


async def change_limit(request: ApiRequest[NoQuery, ChangeLimitBody]) -> LimitState:
    """Change a limit, or one key of it, until it is reset. It wins over what workers declare."""
    name, body = request.path["limit"], request.body
    await request.actions.limits.change(name, **msgspec.structs.asdict(body))
    return await _read_state(request, name)


async def reset_limit(request: ApiRequest[NoQuery, ResetLimitBody]) -> LimitState:
    """Let what workers declare for a limit apply again."""
    name, body = request.path["limit"], request.body
    await request.actions.limits.reset(name, key=body.key, reason=body.reason)
    return await _read_state(request, name)


async def _read_state(
    request: ApiRequest[NoQuery, ChangeLimitBody] | ApiRequest[NoQuery, ResetLimitBody], name: str
) -> LimitState:
    found = await request.services.backend.reads.list_limits(name=name, fullest=0, holders=0)
    return LimitState(name, found[0].changes if found else [])


OPERATIONS = (
    Operation(
        method="GET",
        path="/limits",
        handle=list_limits,
        query=PageQuery,
        answer=LimitPage,
    ),
    Operation(
        method="POST",
        path="/limits/{limit}/change",
        handle=change_limit,
        action="limit.change",
        body=ChangeLimitBody,
        rules=(require_one("concurrency", "rate"), need("burst", "rate")),
        answer=LimitState,
    ),
    Operation(
        method="POST",
        path="/limits/{limit}/reset",
        handle=reset_limit,
        action="limit.reset",
        body=ResetLimitBody,
        answer=LimitState,
    ),
)
