"""Translates limits for backends that store three kinds of them.

PostgreSQL keeps the maximum and the rate of a job name apart from all other limits. It parks jobs
for the limits of queues too, in place of closing their lanes; only the order of its work differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nimburion.core.limits import (
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitRule,
    LimitUse,
    closes_lane,
    make_job_limit_name,
    summarize_limits,
)
from nimburion.core.rate_limits import RateLimit


class DeclaredLimits(NamedTuple):
    """The limits of one job name."""

    concurrency: int | None
    rate: RateLimit | None
    keyed: dict[str, LimitRule]
    """All others, by name, sorted."""


class OwnLimit(NamedTuple):
    """The maximum of a job name."""

    job: str
    maximum: int
    in_use: int
    holders: Sequence[LimitHolder] = ()


class OwnRate(NamedTuple):
    """The rate of a job name."""

    job: str
    rate: RateLimit
    spent_until: int


def split_rules(job: str, rules: Mapping[str, LimitRule]) -> DeclaredLimits:
    """Return the limits of a job name as these backends store them."""
    name = make_job_limit_name(job)
    own = rules.get(name, LimitRule())
    others = {limit: rule for limit, rule in sorted(rules.items()) if limit != name}
    return DeclaredLimits(own.concurrency, own.rate, others)


def describe_own_limit(
    own: OwnLimit | None, rate: OwnRate | None, now: int, holders: int
) -> LimitInfo:
    """Return the limit of a job name, of which at least one part is given."""
    job = own.job if own is not None else "" if rate is None else rate.job
    name = make_job_limit_name(job)
    rule = LimitRule(None if own is None else own.maximum, None if rate is None else rate.rate)
    room = None if rate is None else rate.rate.count_room(rate.spent_until, now)
    opens_at = None
    if rate is not None and room == 0:
        opens_at = rate.rate.find_opening(rate.spent_until) / 1e6
    in_use = 0 if own is None else own.in_use
    use = KeyUse(limit=name, key="", in_use=in_use, parked=0, opens_at=opens_at)
    return LimitInfo(
        name=name,
        rules={job: rule},
        room=room,
        keys=int(in_use > 0),
        in_use=in_use,
        fullest=[use] if in_use or opens_at is not None else [],
        holders=[] if own is None else list(own.holders[:holders]),
    )


def describe_queue_limit(
    job: str, name: str, rule: LimitRule, use: LimitUse, now: int
) -> LimitInfo:
    """Return the limit of a queue as a job name has it."""
    opens_at = None
    if rule.rate is not None and not rule.rate.count_room(use.spent_until, now):
        opens_at = rule.rate.find_opening(use.spent_until) / 1e6
    key_use = KeyUse(limit=name, key="", in_use=use.in_use, parked=0, opens_at=opens_at)
    (limit,) = summarize_limits({job: {name: rule}}, (), (key_use,), name=name, fullest=1)
    return limit


def hide_parked(use: KeyUse) -> KeyUse:
    """Return the use of a key without the jobs that are parked for the limit of a queue."""
    return msgspec.structs.replace(use, parked=0) if closes_lane(use.limit) else use


def combine_limits(
    limits: Iterable[OwnLimit],
    rates: Iterable[OwnRate],
    keyed: Mapping[str, Mapping[str, LimitRule]],
    uses: Iterable[KeyUse],
    changes: Iterable[LimitChange],
    *,
    now: int,
    name: str | None,
    fullest: int,
    holders: int,
) -> list[LimitInfo]:
    """Return every limit, or only the one of this name, ordered by name."""
    found = {
        limit.name: limit
        for limit in summarize_limits(
            keyed, changes, map(hide_parked, uses), name=name, fullest=fullest
        )
    }
    by_job = {own.job: own for own in limits}
    rate_by_job = {rate.job: rate for rate in rates}
    for job in by_job.keys() | rate_by_job.keys():
        own = describe_own_limit(by_job.get(job), rate_by_job.get(job), now, holders)
        if name in {None, own.name}:
            before = found.get(own.name)
            changed = [] if before is None else before.changes
            found[own.name] = msgspec.structs.replace(
                own, changes=changed, fullest=own.fullest[:fullest]
            )
    return [found[limit] for limit in sorted(found)]


def add_sums(
    found: Iterable[LimitInfo], sums: Mapping[str, tuple[int, int, int]]
) -> list[LimitInfo]:
    """Return limits with the sums of all keys: number of keys, in use, parked; by limit name."""
    return [
        limit
        if closes_lane(limit.name)
        else msgspec.structs.replace(limit, keys=keys, in_use=in_use, parked=parked)
        for limit in found
        for keys, in_use, parked in (sums.get(limit.name, (0, 0, 0)),)
    ]
