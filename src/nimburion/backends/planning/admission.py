"""Whether a job has room in its limits, and what it takes there."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from nimburion.backends.planning.source import PlanLane, PlanSource
from nimburion.core.limits import JobLimit, LimitKey, LimitUse
from nimburion.core.rate_limits import RateLimit

REPLY_LIMIT = "(reply)"
"""The name of the limit of one reply: see `make_reply_limit`. No declared limit can have it."""


def make_reply_limit(queue: str, most: int) -> JobLimit:
    """Return the limit of the jobs of a queue in one reply (`QueueOptions.limit`).

    Its use is new in each exchange, and is not stored.
    """
    return JobLimit((REPLY_LIMIT, queue), most, None)


class Admission:
    """The uses of the limits of the jobs that a plan considers."""

    def __init__(self, source: PlanSource, now: int, uses: Mapping[LimitKey, LimitUse]) -> None:
        """`uses`: those of the limits in which all jobs of a lane count."""
        self._source = source
        self._now = now
        self.limits: dict[int, list[JobLimit]] = {}
        """The limits of each job that was read for which it may be parked, by seq."""
        self.uses: dict[LimitKey, LimitUse] = dict(uses)
        self.changed: set[LimitKey] = set()
        """The keys whose uses changed."""

    def read(self, jobs: Mapping[int, PlanLane]) -> None:
        """Read the limits for which jobs may be parked (lanes by seq), and their uses."""
        limits = self._source.read_limits(jobs)
        self.limits |= limits
        unknown = {key for some in limits.values() for key, _, _ in some} - self.uses.keys()
        if unknown:
            self.uses |= self._source.read_uses(unknown)

    def has_room(self, limit: JobLimit) -> bool:
        """Return whether one more job may start."""
        return self.find_full((limit,)) is None

    def find_full(self, limits: Sequence[JobLimit]) -> JobLimit | None:
        """Return the first of these limits that has no room for one more job, or None."""
        for limit in limits:
            key, concurrency, rate = limit
            use = self.uses[key]
            if concurrency is not None and use.in_use >= concurrency:
                return limit
            if rate is not None and rate.count_room(use.spent_until, self._now) == 0:
                return limit
        return None

    def take(self, limits: Collection[JobLimit]) -> None:
        """Count a job that is leased in some of its limits."""
        for key, _, rate in limits:
            use = self.uses[key]
            use.in_use += 1
            self.changed.add(key)
            if rate is not None:
                use.spent_until = rate.spend(use.spent_until, self._now, rate.cost)
                if use.has_parked:
                    use.opens_at = max(self._now, find_unit(rate, use.spent_until))

    def wait_for(self, limit: JobLimit) -> None:
        """Note that a job is parked for a limit that has no room."""
        use = self.uses[limit.key]
        use.has_parked = True
        if limit.concurrency is not None and use.in_use >= limit.concurrency:
            return  # the end of a lease makes room
        if limit.rate is not None:
            opening = limit.rate.find_opening(use.spent_until)
            use.opens_at = opening if use.opens_at is None else min(use.opens_at, opening)
            self.changed.add(limit.key)


def find_unit(rate: RateLimit, spent_until: int) -> int:
    """Return the time from which one unit is available."""
    return msgspec.structs.replace(rate, cost=1).find_opening(spent_until)
