"""Limits as backends store and list them: `StoredLaneLimit` closes lanes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from nimburion.core.limits import (
    JobLimit,
    KeyUse,
    LimitChange,
    LimitHolder,
    LimitInfo,
    LimitRules,
    LimitUse,
    closes_lane,
    get_limited_job,
    summarize_limits,
)
from nimburion.core.rate_limits import RateLimit
from nimburion.core.timing.clock import MICRO


class StoredLaneLimit(NamedTuple):
    """A limit in which all jobs of a lane count, and its use."""

    limit: JobLimit
    use: LimitUse

    def count_room(self, now: int) -> int | None:
        """Return how many jobs may start now, at least 0; None: any number."""
        _, concurrency, rate = self.limit
        room = None if rate is None else rate.count_room(self.use.spent_until, now)
        if concurrency is None:
            return room
        places = max(0, concurrency - self.use.in_use)
        return places if room is None else min(places, room)

    def find_opening(self, now: int) -> int | None:
        """Return when the rate allows the next job; None: now."""
        rate, spent_until = self.limit.rate, self.use.spent_until
        if rate is None or rate.count_room(spent_until, now) > 0:
            return None
        return rate.find_opening(spent_until)


class KeySums(NamedTuple):
    """The sums of all keys of a limit."""

    keys: int = 0
    in_use: int = 0
    parked: int = 0


def make_rate(
    rate: str | None, interval: int | None, burst: int | None, cost: int | None
) -> RateLimit | None:
    """Return the rate in the columns of a rule."""
    return None if rate is None else RateLimit(rate, interval or 1, burst or 1, cost or 1)


def make_key_use(limit: str, key: str, in_use: int, parked: int, opens_at: int | None) -> KeyUse:
    """Return the use of a key for which jobs may be parked."""
    opens = None if opens_at is None or not parked else opens_at / MICRO
    return KeyUse(limit=limit, key=key, in_use=in_use, parked=parked, opens_at=opens)


def describe_limits(
    rules: Mapping[str, LimitRules],
    changes: Iterable[LimitChange],
    lanes: Iterable[StoredLaneLimit],
    fullest_keys: Sequence[tuple[KeyUse, KeySums]],
    holders: Mapping[str, list[LimitHolder]],
    *,
    now: int,
    name: str | None,
    fullest: int,
) -> list[LimitInfo]:
    """Return every limit, or only the one of this name, ordered by name.

    Args:
        rules: the limits in force, by job name and limit name.
        changes: the changes of limits.
        lanes: the limits that close lanes.
        fullest_keys: the fullest keys of each limit, with the sums of all its keys. Those of limits
            that close lanes are ignored.
        holders: the jobs that have counted longest, by the name of the limit.
        now: the time.
        name: the name of a limit; None: all.
        fullest: the most keys of each limit.
    """
    by_limit = {lane.limit.key[0]: lane for lane in lanes}
    uses = [use for use, _ in fullest_keys if not closes_lane(use.limit)]
    uses += [_make_lane_use(lane, now) for lane in by_limit.values()]
    sums = {use.limit: sums for use, sums in fullest_keys}
    return [
        _describe_lane_limit(limit, by_limit.get(limit.name), holders, now)
        if closes_lane(limit.name)
        else msgspec.structs.replace(limit, **sums.get(limit.name, KeySums())._asdict())
        for limit in summarize_limits(rules, changes, uses, name=name, fullest=fullest)
    ]


def _make_lane_use(lane: StoredLaneLimit, now: int) -> KeyUse:
    limit, key = lane.limit.key
    opening = lane.find_opening(now)
    return KeyUse(
        limit=limit,
        key=key,
        in_use=lane.use.in_use,
        parked=0,
        opens_at=None if opening is None else opening / MICRO,
    )


def _describe_lane_limit(
    limit: LimitInfo,
    lane: StoredLaneLimit | None,
    holders: Mapping[str, list[LimitHolder]],
    now: int,
) -> LimitInfo:
    """Add what is known of the limit of a job name only: its room and its holders."""
    if lane is None or get_limited_job(limit.name) is None:
        return limit
    rate = lane.limit.rate
    return msgspec.structs.replace(
        limit,
        room=None if rate is None else rate.count_room(lane.use.spent_until, now),
        holders=holders.get(limit.name, []),
    )
