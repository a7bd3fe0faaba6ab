"""Limits: concurrency, rates and limits by key; change them at run time."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from nimburion.core.keyed_limits import KeyedLimitInfo, KeyUse
from nimburion.core.limit_changes import MAX_CONCURRENCY, LimitChange
from nimburion.core.rate_limits import MAX_UNITS, RateInfo
from nimburion.core.session import LimitInfo
from nimburion.core.size_limits import MAX_TEXT
from nimburion.server.api.body_rules import need, require_one
from nimburion.server.api.names import END, PageQuery
from nimburion.server.api.operation import ApiRequest, NoBody, NoQuery, Operation

Key = Annotated[str, Meta(max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f-\x9f]*" + END)]
Reason = Annotated[str, Meta(pattern=r"^[^\x00-\x1f\x7f-\x9f]{0,500}" + END)]


class LimitPage(msgspec.Struct, frozen=True):
    """The limits of a page of names. The changes are on each page."""

    limits: list[LimitInfo]
    rates: list[RateInfo]
    keyed: list[KeyedLimitInfo]
    """The limits by key, with their fullest keys."""
    keys: list[KeyUse]
    """The first 100 keys of limits by key that are in use or for which jobs wait, on each page."""
    changes: list[LimitChange]
    """What operators changed at run time. It wins over what workers declare."""
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
    """Change only this key of a limit by key."""
    reason: Reason = ""
    """Shown wherever the limit is."""


class ResetLimitBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which change ends."""

    key: Key | None = None
    """End the change of this key; none: the change of the limit itself."""
    reason: Reason = ""
    """Kept in the audit record."""


class LimitState(msgspec.Struct, frozen=True):
    """The changes of one limit that are in force."""

    name: str
    changes: list[LimitChange]


async def list_limits(request: ApiRequest[PageQuery, NoBody]) -> LimitPage:
    """List limits: concurrency with the jobs that hold it longest, rates, limits by key."""
    after, size = request.query.after, request.query.limit
    backend = request.services.backend
    limits = await backend.reads.list_limits()
    rates = await backend.reads.list_rates()
    keyed = await backend.reads.list_keyed_limits()
    names = {limit.name for limit in limits} | {rate.name for rate in rates}
    names |= {limit.name for limit in keyed}
    rest = sorted(name for name in names if after is None or name > after)
    page = set(rest[:size])
    return LimitPage(
        [limit for limit in limits if limit.name in page],
        [rate for rate in rates if rate.name in page],
        [limit for limit in keyed if limit.name in page],
        await backend.reads.list_key_uses(100),
        await backend.reads.list_limit_changes(),
        rest[size - 1] if len(rest) > size else None,
    )


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
    changes = await request.services.backend.reads.list_limit_changes()
    return LimitState(name, [change for change in changes if change.name == name])


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
