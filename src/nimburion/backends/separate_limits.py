"""Translates limits for backends that store three kinds of them.

PostgreSQL keeps the maximum and the rate of a job name apart from the limits that park jobs. There,
the limit of a job name has the name of the jobs, and that of a queue is `queue=NAME`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nimburion.core.limits import (
    JOB_LIMIT,
    QUEUE_LIMIT,
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitRule,
    closes_lane,
    get_limited_job,
    make_job_limit_name,
    summarize_limits,
)
from nimburion.core.rate_limits import RateLimit

_STORED_QUEUE = "queue="


class DeclaredLimits(NamedTuple):
    """The limits of one job name."""

    concurrency: int | None
    rate: RateLimit | None
    keyed: dict[str, LimitRule]
    """Those that park jobs, by their stored names, sorted."""


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
    own = rules.get(make_job_limit_name(job), LimitRule())
    keyed = {encode_limit_name(name): rule for name, rule in rules.items() if not closes_lane(name)}
    return DeclaredLimits(own.concurrency, own.rate, dict(sorted(keyed.items())))


def encode_limit_name(name: str) -> str:
    """Return the stored name of a limit."""
    if name.startswith(QUEUE_LIMIT):
        return _STORED_QUEUE + name[len(QUEUE_LIMIT) :]
    return name.removeprefix(JOB_LIMIT)


def decode_limit_name(stored: str) -> str:
    """Return the name of a limit that parks jobs."""
    if stored.startswith(_STORED_QUEUE):
        return QUEUE_LIMIT + stored[len(_STORED_QUEUE) :]
    return stored


def decode_changed_name(stored: str, key: str | None, keyed: Collection[str]) -> str:
    """Return the name of a changed limit. `keyed`: the names of the limits that park jobs."""
    name = decode_limit_name(stored)
    if key is None and name == stored and name not in keyed:
        return make_job_limit_name(stored)
    return name


def decode_rules(
    stored: Mapping[str, Mapping[str, LimitRule]],
) -> dict[str, dict[str, LimitRule]]:
    """Return limits that park jobs, by job name and limit name."""
    return {
        job: {decode_limit_name(name): rule for name, rule in named.items()}
        for job, named in stored.items()
    }


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
    """Return every limit, or only the one of this name, ordered by name.

    `keyed`, `uses` and `changes` have the names of `core`.
    """
    found = {
        limit.name: limit
        for limit in summarize_limits(keyed, changes, uses, name=name, fullest=fullest)
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
        msgspec.structs.replace(limit, keys=keys, in_use=in_use, parked=parked)
        if get_limited_job(limit.name) is None
        else limit
        for limit in found
        for keys, in_use, parked in (sums.get(limit.name, (0, 0, 0)),)
    ]
