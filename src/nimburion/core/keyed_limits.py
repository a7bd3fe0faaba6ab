"""Limits by key: how many jobs of one key may run or start, for example of one customer.

Jobs of all keys wait in the lane of their name. An exchange that finds a job whose key has no room
parks it: the job leaves the lane until its key has room, so that it is passed over once.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from nimburion.core.rate_limits import RateLimit

QUEUE_LIMIT = "queue="
"""The name of the limit of a whole queue begins with this text; the name of the queue follows."""

LIMIT_PATTERN = r"^(?:queue=)?[A-Za-z0-9_.:-]{1,256}$"
"""The names of limits: of jobs, of each `Limit`, and of queues."""

MAX_PARKED = 1_000
"""The most jobs that one exchange parks. If it stops there, its lanes are among those that wait."""

MAX_RETURNED = 1_000
"""The most parked jobs that one exchange considers again after the limits of their name changed."""

LimitKey = tuple[str, str]
"""The name of a limit, and a key."""


class KeyedLimit(msgspec.Struct, frozen=True):
    """A limit by key, as a worker declares it for one job name. Jobs carry their keys.

    Counts are kept by limit and key, so several job names can share a limit. A limit with the name
    `queue=mail` counts all jobs of the queue `mail` whose names declare it: `find_limit_key`.
    """

    concurrency: int | None = None
    """How many jobs of one key may run at once, over all workers."""
    rate: RateLimit | None = None
    """How many units of one key may start in a time. Its `cost` is that of jobs that carry none."""

    def count_at_once(self) -> int:
        """Return how many jobs of one key can start at once, at least 1.

        When a limit changes, this is the number of parked jobs that return to each lane for each
        key. Further ones would only be parked again.
        """
        burst = 0 if self.rate is None else self.rate.burst
        if self.concurrency is None or self.rate is None:
            return max(self.concurrency or burst, 1)
        return max(min(self.concurrency, burst), 1)


class LimitUse(msgspec.Struct, array_like=True, gc=False):
    """The use of one key of a limit."""

    in_use: int = 0
    """The number of jobs that run."""
    spent_until: int = 0
    """The time until which the units of its rate are spent: see `RateLimit`."""
    opens_at: int | None = None
    """When its parked jobs are considered again because of the rate; None: no time is known."""
    has_parked: bool = False


class JobLimit(NamedTuple):
    """A limit in which a job counts: its key there, the maximum, and the rate with its cost."""

    key: LimitKey
    concurrency: int | None
    rate: RateLimit | None


class KeyedLimitInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A limit by key when it was read, with its fullest keys."""

    name: str
    jobs: dict[str, KeyedLimit]
    """What applies to each job name that has the limit, by job name."""
    keys: int = 0
    """The number of keys that are in use or for which jobs wait."""
    in_use: int = 0
    """The number of jobs that run, of all keys."""
    parked: int = 0
    """The number of jobs that wait for their key to have room, of all keys."""
    fullest: list[KeyUse] = msgspec.field(default_factory=list)
    """The keys with the most running and waiting jobs, first the one with most."""


class KeyUse(msgspec.Struct, frozen=True, kw_only=True):
    """A key of a limit that is in use, or for which jobs wait."""

    limit: str
    """The name of the limit."""
    key: str
    in_use: int
    """The number of jobs that run."""
    parked: int
    """The number of jobs that wait for this key to have room."""
    opens_at: float | None = None
    """When the rate of the key allows the next parked job, in epoch seconds; None: no rate delays
    one."""


def make_queue_limit_name(queue: str) -> str:
    """Return the name of the limit of a whole queue.

    No job and no `Limit` can have this name.

    >>> make_queue_limit_name("mail")
    'queue=mail'
    """
    return QUEUE_LIMIT + queue


def get_limited_queue(limit: str) -> str | None:
    """Return the queue whose limit has this name; None: it is no limit of a queue."""
    return limit[len(QUEUE_LIMIT) :] if limit.startswith(QUEUE_LIMIT) else None


def find_limit_key(limit: str, queue: str, limit_keys: Mapping[str, str]) -> str | None:
    """Return the key for which a job counts in a limit; None: it does not count.

    Args:
        limit: the name of the limit.
        queue: the queue in which the job waits. It decides for the limits of queues.
        limit_keys: the keys that the job carries, by the name of the limit.
    """
    limited = get_limited_queue(limit)
    if limited is None:
        return limit_keys.get(limit)
    return "" if limited == queue else None


def summarize_uses(
    limits: Mapping[str, Mapping[str, KeyedLimit]], uses: Iterable[KeyUse], most: int
) -> list[KeyedLimitInfo]:
    """Return a summary of each limit, ordered by name, from all uses of keys.

    `limits` are by job name and then by the name of the limit. A limit that no job name has any
    more is listed while its keys are in use.
    """
    jobs: dict[str, dict[str, KeyedLimit]] = {}
    for job, named in sorted(limits.items()):
        for name, limit in named.items():
            jobs.setdefault(name, {})[job] = limit
    found: dict[str, list[KeyUse]] = {}
    for use in uses:
        if use.in_use or use.parked:
            found.setdefault(use.limit, []).append(use)
    return [
        KeyedLimitInfo(
            name=name,
            jobs=jobs.get(name, {}),
            keys=len(keys),
            in_use=sum(use.in_use for use in keys),
            parked=sum(use.parked for use in keys),
            fullest=heapq.nsmallest(most, keys, key=get_fullness),
        )
        for name in sorted({*jobs, *found})
        for keys in (found.get(name, []),)
    ]


def add_sums(
    found: Iterable[KeyedLimitInfo], sums: Mapping[str, tuple[int, int, int]], name: str | None
) -> list[KeyedLimitInfo]:
    """Return summaries with the sums of all keys: number of keys, in use, parked; by limit name.

    With a name, only the limit of this name is returned.
    """
    return [
        msgspec.structs.replace(limit, keys=keys, in_use=in_use, parked=parked)
        for limit in found
        if name in {None, limit.name}
        for keys, in_use, parked in (sums.get(limit.name, (0, 0, 0)),)
    ]


def get_fullness(use: KeyUse) -> tuple[int, str]:
    """Return the sort key of uses: first the key with the most running and waiting jobs."""
    return -use.in_use - use.parked, use.key
